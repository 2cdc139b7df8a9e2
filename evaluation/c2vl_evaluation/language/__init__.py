"""What the text side of a pre-trained encoder can do: zero-shot classes, retrieval, search."""
