"""The method's settings and the defaults that differ from TRL's, without TRL.

`ZoomZeroConfig` adds them to `GRPOConfig`, and the command line makes its options of them; importing this file takes no
time.
"""

from dataclasses import dataclass, field
from typing import Any

from zoomzero.limits import FORWARD_TOKENS, MAX_NEW_TOKENS, MAX_SKIPPED_FRACTION, NUM_DECODERS, TIME_LIMIT_SECONDS

CREDITS = ("token_adv", "span_adv", "uniform")
ZOOM_SCORERS = ("reference", "policy")


def _setting(default: Any, text: str) -> Any:
    """A dataclass field with its one line of documentation, which the command line shows as help."""
    return field(default=default, metadata={"help": text})


@dataclass
class TrainingSettings:
    """What the method adds to GRPO, and GRPO's settings whose default differs from TRL's or that users turn first."""

    num_generations: int = _setting(8, "Responses per prompt: a group.")
    max_completion_length: int = _setting(MAX_NEW_TOKENS, "Longest response in tokens.")
    learning_rate: float = _setting(1e-6, "Step size of AdamW; the tiny model wants 3e-4.")
    beta: float = _setting(0.01, "Weight of the KL term to the frozen start model; 0 leaves it out.")
    epsilon_high: float = _setting(0.28, "Upper clip of the ratio (0.28 as in DAPO).")
    temperature: float = _setting(1.0, "Temperature of the responses.")
    credit: str = _setting(
        "token_adv",
        "token_adv: each reward to its own tokens (TokenAdv); span_adv: the same, IoU to span tokens alone; uniform: "
        "every reward to every token (GRPO). A recipe may give the matrix.",
    )
    advantage_normalize: str = _setting(
        "segments",
        "What a group's advantages are normalised over: tokens (TokenAdv), segments, rewards, sequence (GRPO) or none.",
    )
    zoom_reward: bool = _setting(True, "The zoom pass: answer from the zoomed frames and reward a right answer.")
    zoom_scorer: str = _setting("reference", "Who answers the zoom pass: reference, the frozen start model, or policy.")
    offload_reference: bool = _setting(
        False, "Keep the frozen start model in the host's memory, and on the device only while it works."
    )
    online_filter: bool = _setting(
        False, "Leave out of the loss the groups whose answers are all right or all wrong and whose IoU is equal."
    )
    freeze_vision: bool = _setting(True, "The vision tower is not trained, and each video's features are cached.")
    forward_tokens: int = _setting(
        FORWARD_TOKENS,
        "Most tokens in a forward of prefill, zoom pass or reference; rollouts written together keep 8 times as many.",
    )
    use_vllm: bool = _setting(
        False, "vLLM writes the rollouts, in this process, and takes the weights after each step."
    )
    vllm_mode: str = _setting(
        "colocate", "How vLLM runs; colocate, inside each training process, is the one supported."
    )
    vllm_gpu_memory_utilization: float = _setting(
        0.3, "Share of the GPU's memory that vLLM may take, weights included."
    )
    vllm_max_model_length: int | None = _setting(
        None, "Longest prompt and response together that vLLM takes, in tokens."
    )
    gradient_checkpointing: bool = _setting(False, "Recompute activations in the backward pass to save memory.")
    bf16: bool = _setting(False, "bfloat16 mixed precision in the loss and the zoom pass.")
    video_time_limit: float | None = _setting(
        TIME_LIMIT_SECONDS,
        "Seconds after which a decoder that gives no sign of life is stopped and its sample skipped; decoding happens "
        "in this process where there is no limit.",
    )
    num_decoders: int = _setting(
        NUM_DECODERS, "Videos read side by side, each in a decoding process of its own where there is a time limit."
    )
    max_skipped_fraction: float = _setting(
        MAX_SKIPPED_FRACTION, "Stop when the videos of more than this share of the samples are unreadable."
    )
    feature_cache_bytes: int = _setting(1 << 30, "Bound of the cached video features, or pixels of a trained tower.")
    frame_cache_bytes: int = _setting(1 << 29, "Bound of the decoded frames of small videos kept in memory.")
    read_ahead_bytes: int = _setting(
        1 << 30, "Bound of the next batch's videos read while the model works; 0 reads nothing ahead."
    )
