"""The raw folder: which samples a dataset expects, which files are there, and what is wrong with them."""
