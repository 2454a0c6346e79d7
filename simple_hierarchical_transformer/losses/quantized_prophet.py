"""Quantised prophet: a coarse token predicts the codes of the next disjoint one.

The codes come from a frozen random-projection quantiser (Chiu et al., BEST-RQ, arXiv 2202.01855).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .cross_entropy import Question, linear_cross_entropy

SEED = 2202_01855  # of the frozen projections and codebooks; they are derived from it, so no checkpoint holds them


def as_initialized(data: Tensor, mask: Tensor | None = None) -> None:
    """What a codebook does about its codes before it is used, when it has them."""


class FrozenQuantizer(nn.Module):
    """Tokens (b, m, dim) → codes (b, m, q), by projections and codebooks that follow from a fixed seed alone."""

    def __init__(self, dim: int, num_codebooks: int, codebook_dim: int, codebook_size: int) -> None:
        super().__init__()
        self.dim = dim
        self.num_codebooks = num_codebooks
        self.codebook_dim = codebook_dim
        self.codebook_size = codebook_size
        self._draw(torch.get_default_device())

    def _draw(self, device: torch.device) -> None:
        """Make what is derived. It is drawn on the CPU, wherever it is used; on the meta device, nothing is drawn."""
        from vector_quantize_pytorch import RandomProjectionQuantizer

        default_type = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            with torch.random.fork_rng(devices=[]), torch.device("meta" if device.type == "meta" else "cpu"):
                torch.default_generator.manual_seed(SEED)  # torch.manual_seed would set those of the GPUs, too
                self.quantizer = RandomProjectionQuantizer(
                    dim=self.dim,
                    num_codebooks=self.num_codebooks,
                    codebook_dim=self.codebook_dim,
                    codebook_size=self.codebook_size,
                )
        finally:
            torch.set_default_dtype(default_type)
        for module in self.quantizer.modules():  # what is derived is neither trained nor saved
            if hasattr(module, "init_embed_"):  # asked at each call, which no compiler can follow
                module.init_embed_ = as_initialized
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer, persistent=False)
            for name, parameter in list(module.named_parameters(recurse=False)):
                delattr(module, name)
                module.register_buffer(name, parameter.detach(), persistent=False)
        self.to(device)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenQuantizer:
        """Follow the model to another device but not to another type, which would change the codes.

        From the meta device nothing can be moved: there, `to_empty` of a whole model brings the codes anew.
        """
        if self.quantizer.rand_projs.is_meta:
            device = fn(self.quantizer.rand_projs).device
            if device.type != "meta":
                self._draw(device)
            return self
        for module in self.quantizer.modules():
            for name, buffer in list(module.named_buffers(recurse=False)):
                module.register_buffer(name, buffer.to(fn(buffer).device), persistent=False)
        return self

    @torch.no_grad()
    def forward(self, tokens: Tensor) -> Tensor:
        with torch.autocast(tokens.device.type, enabled=False):
            codes: Tensor = self.quantizer(tokens.float())
        return codes.reshape(*tokens.shape[:2], self.num_codebooks)


class QuantizedProphetLoss(nn.Module):
    """Mean cross-entropy of the codes of token `j + g`, given token `j`."""

    def __init__(self, dim: int, phase_groups: int, num_codebooks: int, codebook_size: int) -> None:
        super().__init__()
        self.phase_groups = phase_groups
        self.num_codebooks = num_codebooks
        self.to_codes = nn.Linear(dim, num_codebooks * codebook_size, bias=False)

    def forward(self, embeds: Tensor, codes: Tensor, valid: Tensor, count: Tensor) -> Tensor:
        """Of `embeds` (b, m, dim), `codes` (b, m, q) and `valid` (b, m - g); the sum over `count`."""
        groups = self.phase_groups
        weights = self.to_codes.weight.chunk(self.num_codebooks)
        predicting, targets = embeds[:, :-groups], codes[:, groups:]
        losses = [
            linear_cross_entropy(Question(predicting, targets[..., q], valid), weight, count)
            for q, weight in enumerate(weights)
        ]
        return torch.stack(losses).mean()
