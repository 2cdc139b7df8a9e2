"""What is looked at and mended in a work folder between runs."""
