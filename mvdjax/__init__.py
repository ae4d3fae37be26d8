"""Masked video pretraining in JAX/Flax: MVD and BEVT, from raw video files to a scored classifier."""

__version__ = '0.1.0'
