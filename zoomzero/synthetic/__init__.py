"""A synthetic world for training, tests and the demo: H.264 clips with questions, and a tiny model that reads them."""

from zoomzero.synthetic.clips import Clip, Question, make_clips, nextgqa_rows
from zoomzero.synthetic.tiny_model import TINY_SETTINGS, tiny_checkpoint, tiny_model, tiny_processor, tiny_tokenizer

__all__ = [
    "TINY_SETTINGS",
    "Clip",
    "Question",
    "make_clips",
    "nextgqa_rows",
    "tiny_checkpoint",
    "tiny_model",
    "tiny_processor",
    "tiny_tokenizer",
]
