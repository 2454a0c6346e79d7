"""Which optimiser moves which parameter, and how fast over the course of a run."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.optim import AdamW, Muon, Optimizer

from ..model import HierarchicalTransformer


def split_parameters(model: HierarchicalTransformer) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The hidden matrices, and everything else: embedding, head, and what is no matrix. Each parameter once.

    Muon makes the singular values of an update alike, which suits a map between hidden features. The rows of a table
    that is looked up, or that scores tokens, are independent of each other and better off with AdamW.
    """
    tables = {id(model.token_emb.weight), id(model.to_logits.weight)}
    matrices: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            is_hidden_matrix = parameter.ndim == 2 and id(parameter) not in tables
            (matrices if is_hidden_matrix else rest).append(parameter)
    return matrices, rest


def make_optimizers(model: HierarchicalTransformer, muon_lr: float, adamw_lr: float) -> tuple[Optimizer, Optimizer]:
    """Muon (Jordan et al., 2024) for the hidden matrices and AdamW for the rest; neither decays weights."""
    matrices, rest = split_parameters(model)
    muon = Muon(matrices, lr=muon_lr, weight_decay=0.0, adjust_lr_fn="original")
    adamw = AdamW(rest, lr=adamw_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True)
    for group in (*muon.param_groups, *adamw.param_groups):
        group["initial_lr"] = group["lr"]
    return muon, adamw


def learning_rate_factor(progress: float, warmup: float, cooldown: float) -> float:
    r"""What the learning rates are multiplied with after a share `progress` of the run.

    1      ____________
          /            \
    0    /              \
         warmup         cooldown: shares of the run
    """
    rise = progress / warmup if progress < warmup else 1.0
    fall = (1.0 - progress) / cooldown if progress > 1.0 - cooldown else 1.0
    return max(0.0, min(rise, fall))


def scale_learning_rates(optimizers: Sequence[Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
