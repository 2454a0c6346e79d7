"""Root-mean-square norm (Zhang & Sennrich, arXiv 1910.07467) without a gain.

A gain before a linear map is the same function as one inside that map, so none is learned.
"""

import torch
from torch import Tensor

EPS = 1e-6


def rms_norm(x: Tensor) -> Tensor:
    """Divide each last-dimension vector of `x` by its root mean square; computed in float32 or above."""
    precise = x.to(torch.promote_types(x.dtype, torch.float32))
    # by the vector norm, which needs no squared copy of x, neither now nor for the backward pass
    mean_square = torch.linalg.vector_norm(precise, dim=-1, keepdim=True).square() / x.shape[-1]
    return (precise * (mean_square + EPS).rsqrt()).to(x.dtype)
