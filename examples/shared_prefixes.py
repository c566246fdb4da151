"""Compute the prompt of a group once, in a model of transformers as it is: the same numbers from fewer tokens."""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

import zoomzero

VOCAB, PROMPT, RESPONSES, WIDTH = 128, 400, 8, 20


def main() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB, num_key_value_heads=2, **sizes)).eval()
    prompt = torch.randint(0, VOCAB, (PROMPT,)).tolist()
    completions = torch.randint(0, VOCAB, (RESPONSES, WIDTH)).tolist()

    with zoomzero.shared_prefix(model) as shared:
        logps = shared.logps([prompt], [completions])[0]
    sum(each.sum() for each in logps).backward()
    packed = model.lm_head.weight.grad.clone()
    model.zero_grad()

    # The usual way: whole rows, the prompt in each.
    rows = torch.tensor([[*prompt, *completion] for completion in completions])
    logits = model(rows).logits[:, PROMPT - 1 : -1]
    usual = logits.log_softmax(-1).gather(-1, rows[:, PROMPT:, None]).squeeze(-1)
    usual.sum().backward()

    print(f"{shared.tokens_given} tokens given, {shared.tokens_computed} computed")
    print(f"log-probabilities differ by at most {(torch.stack(logps) - usual).abs().max():.1e}")
    grad = model.lm_head.weight.grad
    print(f"gradients differ by at most {(grad - packed).abs().max() / grad.abs().max():.1e} of the largest")


if __name__ == "__main__":
    main()
