"""Limits with one default wherever they can be given. Imports nothing, so that --help can show them at once."""

MAX_NEW_TOKENS = 512
"""Longest response in tokens, as the method was trained."""

MAX_SKIPPED_FRACTION = 0.05
"""Share of a run's samples whose videos may be unreadable before the run stops."""

TIME_LIMIT_SECONDS = 120.0
"""Seconds after which a decoder that gives no sign of life is stopped."""

NUM_DECODERS = 2
"""Processes that decode files one does not trust, side by side; as many as threads read ahead."""

MAX_QUESTION_CHARACTERS = 10_000
"""Longest question, and longest option: a few pages; more would fill the context of many a model."""

MAX_BAD_FRACTION = 0.01
"""Share of an annotation file's rows that may break a rule; they are left out."""
# Tokens in one forward without gradients; Note [A bound in tokens] in models/batches.py says what that takes.
FORWARD_TOKENS = 1 << 15
