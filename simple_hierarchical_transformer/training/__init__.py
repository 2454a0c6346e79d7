"""The application: trains a byte model on text. Needs the extra `train` only where `training.loop` is imported."""

from .config import ModelArguments, TrainConfig

__all__ = ["ModelArguments", "TrainConfig"]
