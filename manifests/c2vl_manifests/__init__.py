"""The contract between the prompt factory, the trainer and the evaluation.

Everything that crosses a stage boundary is described here and nowhere else: joint layouts, datasets and
their splits, Arrow schemas, stage manifests and recipes. Imports numpy, pyarrow and pydantic, never torch.
"""

__version__ = "0.1.0"
