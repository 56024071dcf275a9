"""Numbers: features to statistics to number."""
