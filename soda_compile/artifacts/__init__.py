"""Ahead-of-time packages: a planned, compiled denoiser as one file, and the loaded denoiser."""

from soda_compile.artifacts.denoiser import PackagedDenoiser
from soda_compile.artifacts.exporting import export
from soda_compile.artifacts.loading import load

__all__ = ["PackagedDenoiser", "export", "load"]
