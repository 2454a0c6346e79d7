"""Hierarchical causal language models: streams of tokens at several resolutions, merged in every layer."""

from .checkpoint import CheckpointError
from .losses import Losses
from .model import HierarchicalTransformer
from .state import DecodingState

__all__ = ["CheckpointError", "DecodingState", "HierarchicalTransformer", "Losses"]
__version__ = "0.5.0"
