"""Readers of raw files: one module per skeleton format, and `video`."""
