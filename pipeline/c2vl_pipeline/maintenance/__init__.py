"""Inspection and repair of a work folder between runs."""
