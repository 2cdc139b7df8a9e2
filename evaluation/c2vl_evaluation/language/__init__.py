"""Uses of the text side of a pre-trained encoder: zero-shot classes, retrieval, search."""
