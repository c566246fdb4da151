"""Model families: what reading, looking, sampling and training ask of a checkpoint."""
