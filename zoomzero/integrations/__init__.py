"""Adapters of the GRPO ops to trainers: ``zoomzero.integrations.trl`` and ``zoomzero.integrations.verl``."""
