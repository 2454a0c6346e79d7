"""Which optimiser moves which parameter, and how fast over the course of a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.swa_utils import AveragedModel

from ..model import HierarchicalTransformer
from .config import TrainConfig

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # also of what is sharded over processes


class Parameters(NamedTuple):
    """Those of a model, each once, by what moves them best.

    Muon makes the singular values of an update alike, which suits a map between hidden features. The rows of a table
    that is looked up, or that scores tokens, are independent of each other and better off with AdamW. Most n-grams are
    rare, so what is learnt of one has to be learnt in few steps.
    """

    matrices: list[nn.Parameter]  # between hidden features
    ngrams: list[nn.Parameter]
    rest: list[nn.Parameter]  # embedding, head, and what is no matrix


def split_parameters(model: HierarchicalTransformer) -> Parameters:
    tables = {id(model.token_emb.weight), id(model.to_logits.weight)}
    ngrams = set() if model.ngrams is None else {id(model.ngrams.vectors.weight)}
    split = Parameters([], [], [])
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        if id(parameter) in ngrams:
            split.ngrams.append(parameter)
        elif parameter.ndim == 2 and id(parameter) not in tables:
            split.matrices.append(parameter)
        else:
            split.rest.append(parameter)
    return split


def make_optimizers(model: HierarchicalTransformer, config: TrainConfig) -> list[Optimizer]:
    """Muon (Jordan et al., 2024) for the hidden matrices and AdamW for the rest, or AdamW for all.

    Matrices decay (Loshchilov & Hutter, 2019), but no gains and biases, and no vectors of n-grams, which are rare.
    """
    matrices, ngrams, rest = split_parameters(model)
    decay, betas = config.weight_decay, (0.9, 0.95)
    by_adamw = list(rest)
    optimizers: list[Optimizer] = []
    if config.optimizer == "muon":
        optimizers.append(Muon(matrices, lr=config.hidden_lr, weight_decay=decay, adjust_lr_fn="original"))
    else:
        by_adamw += matrices
    groups = [
        {"params": [parameter for parameter in by_adamw if parameter.ndim >= 2], "weight_decay": decay},
        {"params": [parameter for parameter in by_adamw if parameter.ndim < 2], "weight_decay": 0.0},
        {"params": ngrams, "weight_decay": 0.0, "lr": config.rare_lr},
    ]
    groups = [group for group in groups if group["params"]]
    optimizers.append(AdamW(groups, lr=config.adamw_lr, betas=betas, fused=True))
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def lay_out_momentum(optimizers: Sequence[Optimizer]) -> None:
    """Let Muon's momentum lie in memory as the weights do, row by row.

    Else it would lie as the first gradients do, until a run goes on from a file, in which every tensor lies row by
    row. A norm sums in the order of the memory, so the bits would differ from there on.
    """
    for optimizer in optimizers:
        if isinstance(optimizer, Muon):
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter).detach()


def learning_rate_factor(progress: float, config: TrainConfig) -> float:
    r"""What the learning rates are multiplied with after a share `progress` of the run.

    constant                      cosine, linear
    1      ____________           1      __
          /            \                /   \__
    f    /              \         f    /       \__
         warmup         cooldown       warmup         f: final_lr; shares of the run
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < config.warmup:
        return progress / config.warmup
    start = 1.0 - config.cooldown_share if config.schedule == "constant" else config.warmup
    fallen = (progress - start) / (1.0 - start) if progress > start else 0.0
    share = (1.0 + math.cos(math.pi * fallen)) / 2 if config.schedule == "cosine" else 1.0 - fallen
    return config.final_lr + (1.0 - config.final_lr) * share


def scale_learning_rates(optimizers: Sequence[Optimizer], factor: float) -> None:
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor


def optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    """What optimisers remember, as `parameter/name`; of a sharded model, gathered on the first process."""
    remembered = get_optimizer_state_dict(model, list(optimizers), options=WHOLE).get("state", {})
    tensors: dict[str, Tensor] = {}
    for parameter, values in cast(Mapping[str, Mapping[str, Tensor]], remembered).items():
        tensors |= {f"{parameter}/{name}": value for name, value in values.items()}
    return tensors


def set_optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer], tensors: Mapping[str, Tensor]) -> None:
    """Take back what `optimizer_tensors` gave; every process gives all of it."""
    remembered: dict[str, Any] = {}
    for key, value in tensors.items():
        parameter, _, name = key.rpartition("/")
        remembered.setdefault(parameter, {})[name] = value
    groups = get_optimizer_state_dict(model, list(optimizers))["param_groups"]
    set_optimizer_state_dict(model, list(optimizers), {"state": remembered, "param_groups": groups}, options=WHOLE)


def make_average(model: HierarchicalTransformer, share_kept: float) -> AveragedModel:
    """A second model, of exponentially averaged weights; in the first steps of weights that count more alike."""

    @torch.no_grad()
    def update(averaged: Sequence[Tensor], weights: Sequence[Tensor], seen: Tensor | int) -> None:
        # as in Abadi et al. (2016): the weights of the first step aren't worth more than those of later ones
        kept = min(share_kept, (1.0 + float(seen)) / (10.0 + float(seen)))
        torch._foreach_lerp_(list(averaged), list(weights), 1.0 - kept)

    return AveragedModel(model, multi_avg_fn=update)
