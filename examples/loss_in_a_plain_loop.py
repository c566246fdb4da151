"""Token-selective GRPO in a plain loop: no trainer, no video, a language model of transformers and the two ops.

The model writes ten tokens. Reward 0, for an even first token, is credited to that token alone; reward 1, for odd
tokens after it, to the rest. A reward that went to all tokens alike would blur the two.
"""

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from zoomzero_kernels import linear_grpo_loss, token_advantages

VOCAB, PROMPT, WIDTH, GROUP, STEPS = 32, 4, 10, 64, 40
CREDIT = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # [rewards, segments]


def main() -> None:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=VOCAB, num_key_value_heads=2, **sizes))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    prompt = torch.randint(0, VOCAB, (1, PROMPT)).expand(GROUP, -1)
    mask = torch.ones(GROUP, WIDTH, dtype=torch.bool)
    segments = (torch.arange(WIDTH) > 0).to(torch.uint8).expand(GROUP, -1)
    for step in range(STEPS):
        with torch.no_grad():
            ids = model.generate(
                prompt, max_new_tokens=WIDTH, do_sample=True, top_k=0, eos_token_id=None, pad_token_id=0
            )
        tokens = ids[:, PROMPT:]
        rewards = torch.stack([tokens[:, 0] % 2 == 0, (tokens[:, 1:] % 2).float().mean(1)], dim=1).float()
        advantages = token_advantages(
            rewards, segments, CREDIT, torch.zeros(GROUP, dtype=torch.int64), mask, normalize="segments"
        )
        # Position t predicts token t, so it is the one to the left of that token.
        hidden = model.model(ids).last_hidden_state[:, PROMPT - 1 : -1]
        loss = linear_grpo_loss(hidden, model.lm_head.weight, tokens, advantages, mask).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % 10 == 0 or step == STEPS - 1:
            first, rest = rewards.mean(0).tolist()
            print(f"step {step}: first token even {first:.2f}, others odd {rest:.2f}")


if __name__ == "__main__":
    main()
