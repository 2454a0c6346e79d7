"""Slow, obvious definitions of the parts, one token at a time. Only tests import them."""

from __future__ import annotations

import torch
from torch import Tensor

from simple_hierarchical_transformer.attention import Attention
from simple_hierarchical_transformer.compressor import Compressor
from simple_hierarchical_transformer.merge import LinearMerge, Merge

EPS = 1e-6


def norm(x: Tensor) -> Tensor:
    return x / (x.pow(2).mean(dim=-1, keepdim=True) + EPS).sqrt()


def rotated(x: Tensor, position: int) -> Tensor:
    """Pairs of features (i, i + d/2) of x (d,) as complex numbers, times exp(i · position · frequency)."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
    turned = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones(half).double(), position * frequency)
    return torch.cat((turned.real, turned.imag))


def attention(module: Attention, x: Tensor) -> Tensor:
    """Each query on its own: itself, and `reach` tokens back in steps of `g`."""
    b, m, _ = x.shape
    groups, d = module.phase_groups, module.dim_head
    qkv = (x @ module.to_qkv.weight.T).reshape(b, m, 3, module.heads, d)
    scale = (torch.arange(0, d, 2).double() + 0.4 * d) / (1.4 * d)
    scale = torch.cat((scale, scale))
    rows = []
    for row in range(b):
        tokens = []
        for j in range(m):
            heads = []
            for h in range(module.heads):
                query = rotated(norm(qkv[row, j, 0, h]), j // groups)
                seen = [j - back * groups for back in range(module.reach + 1) if j - back * groups >= 0]
                scores = []
                for k in seen:
                    key = rotated(norm(qkv[row, k, 1, h]), k // groups)
                    decay = scale ** ((j - k) / groups / 512) if module.use_xpos else 1.0
                    scores.append((query * key * decay).sum() / d**0.5)
                weights = torch.stack(scores).softmax(dim=0)
                heads.append((weights[:, None] * torch.stack([qkv[row, k, 2, h] for k in seen])).sum(dim=0))
            tokens.append(torch.cat(heads))
        rows.append(torch.stack(tokens))
    return torch.stack(rows) @ module.to_out.weight.T


def compressor(module: Compressor, x: Tensor) -> Tensor:
    """Each token on its own: a map of the inputs s·j-c+1 … s·j, with zeros before the start."""
    c, s = module.compress_factor, module.stride
    weight = module.window.weight.reshape(-1, c, x.shape[-1])
    tokens = []
    for end in range(0, x.shape[1], s):
        hidden = module.window.bias.expand(x.shape[0], -1)
        for offset in range(c):
            position = end - c + 1 + offset
            if position >= 0:
                hidden = hidden + x[:, position] @ weight[:, offset].T
        tokens.append((hidden.relu() ** 2) @ module.to_out.weight.T)
    return torch.stack(tokens, dim=1)


def token_shift(x: Tensor, groups: int) -> Tensor:
    half = x.shape[-1] // 2
    shifted = [x[:, j - groups, half:] if j >= groups else torch.zeros_like(x[:, 0, half:]) for j in range(x.shape[1])]
    return norm(torch.cat((x[:, :, :half], torch.stack(shifted, dim=1)), dim=-1))


def merge(module: Merge | LinearMerge, normed: list[Tensor], strides: list[int]) -> Tensor:
    """One linear map of all streams side by side, at the target's rate, and what comes after it, if anything."""
    stride = strides[module.target]
    length = normed[module.target].shape[1]
    rows = []
    for j in range(length):
        position = j * stride
        rows.append(torch.cat([normed[i][:, position // strides[i]] for i in module.sources], dim=-1))
    weight = torch.cat([projection.weight for projection in module.projections], dim=1)
    mapped = torch.stack(rows, dim=1) @ weight.T
    if isinstance(module, LinearMerge):
        return mapped
    hidden = mapped + module.bias
    return (hidden.relu() ** 2) @ module.to_out.weight.T
