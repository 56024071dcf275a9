"""From photos to aligned faces."""
