"""Every denoising transformer of diffusers, tiny and random, with its residual modules written down by hand."""
