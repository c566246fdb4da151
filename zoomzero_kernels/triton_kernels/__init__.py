"""Kernels in Triton and their launch. The build loads this folder's modules by their bare names, without torch."""
