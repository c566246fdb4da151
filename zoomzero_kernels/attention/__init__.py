"""Attention of packed rows: which rows see which keys, and the kernels that compute one such part."""
