"""Datasets of made people in the formats of other programs, out and back in."""
