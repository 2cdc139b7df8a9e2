"""The HTML report of a results table."""
