"""Model families: what reading, looking, sampling and training ask of a checkpoint."""

from zoomzero.models.families import FAMILIES, family_of
from zoomzero.models.loading import load_model
from zoomzero.models.positions import mrope_positions

__all__ = ["FAMILIES", "family_of", "load_model", "mrope_positions"]
