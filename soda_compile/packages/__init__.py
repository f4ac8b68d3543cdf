"""Ahead-of-time packages: a planned, compiled denoiser as one file, and the loaded denoiser.

(The name ``soda_compile.export`` is the public function.) May import ``backend`` and the rooms below it.
"""
