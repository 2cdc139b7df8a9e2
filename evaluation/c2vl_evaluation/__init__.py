"""Protocols on frozen features, the controls beside them, and the report."""
