"""Faces as codes of a StyleGAN: the generator, encoders that read photos into its codes, and their files."""
