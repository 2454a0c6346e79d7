"""A page to play with a model, served to this machine alone: `hierarchical-transformer demo --model FOLDER`."""

from .server import make_server

__all__ = ["make_server"]
