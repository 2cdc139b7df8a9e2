"""Evaluation protocols, one module each."""
