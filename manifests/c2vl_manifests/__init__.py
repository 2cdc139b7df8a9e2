"""File formats and settings shared by pipeline, training and evaluation.

Joint layouts, datasets and splits, Arrow schemas, manifests and recipes are defined here and nowhere else. Never
imports torch.
"""

__version__ = "0.1.0"
