"""Measuring the ops, reading and answering on this machine: what `zoomzero bench` runs and `benchmarks/` shares."""
