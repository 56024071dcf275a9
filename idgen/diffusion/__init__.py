"""The diffusion side of identity: when and where in the denoising it has a say."""
