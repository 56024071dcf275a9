"""Directions in the codes of a StyleGAN: read, learned, followed."""
