"""The embedded preference model: which of two face crops looks more like a good photograph."""
