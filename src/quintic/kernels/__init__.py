"""Triton kernels, each a fast variant of plain PyTorch that stands elsewhere.

Their modules import triton, so they are imported where one is asked for and nowhere else. Expected
gains, and what was measured, are in `docs/gpu-kernels.md`.
"""
