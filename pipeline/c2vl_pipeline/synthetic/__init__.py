"""A synthetic dataset in NTU's format: stick figures in motion, as videos and skeleton files."""
