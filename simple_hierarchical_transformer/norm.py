"""Root-mean-square norm (Zhang & Sennrich, arXiv 1910.07467) without a gain.

A gain before a linear map is the same function as one inside that map, so none is learned.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

EPS = 1e-6


def rms_norm(x: Tensor) -> Tensor:
    """Divide each last-dimension vector of `x` by its root mean square; computed in float32 or above."""
    precise = torch.promote_types(x.dtype, torch.float32)
    return F.rms_norm(x.to(precise), x.shape[-1:], eps=EPS).to(x.dtype)
