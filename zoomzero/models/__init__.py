"""Model families: what reading, looking, sampling and training ask of a checkpoint."""

from zoomzero.models.families import FAMILIES, family_of
from zoomzero.models.loading import load_model

__all__ = ["FAMILIES", "family_of", "load_model"]
