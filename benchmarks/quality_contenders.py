"""Who trains in quality.py, under one interface, and with one optimiser for all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from quality_runs import Run
from torch import Tensor, nn
from torch.optim import AdamW, Muon, Optimizer

BYTES = 256
COARSE = re.compile(r"(compressors|blocks)\.[1-9]")  # parameters of our streams but the first
IGNORED = -100  # no id, so that every byte is a target


@dataclass(frozen=True)
class Contender:
    """A model that is trained on ids (b, n + 1) and predicts the last n of them."""

    model: nn.Module
    losses: Callable[[Tensor], tuple[Tensor, Tensor]]  # what is learnt from, and the next byte's cross-entropy in nats
    logits: Callable[[Tensor], Tensor] | None = None  # of ids (b, n), where the model gives them


def hierarchical(arguments: dict[str, Any], seq_len: int) -> Contender:
    """Of whichever package of this name the process has, ours or the reference."""
    from simple_hierarchical_transformer import HierarchicalTransformer

    model = HierarchicalTransformer(num_tokens=BYTES, seq_len=seq_len, ignore_index=IGNORED, **arguments)

    def losses(ids: Tensor) -> tuple[Tensor, Tensor]:
        loss, parts = model(ids, return_loss=True)
        return loss, parts[0]

    return Contender(model, losses, model)


def variant(arguments: dict[str, Any], seq_len: int) -> Contender:
    """Our model with changes that the package doesn't have."""
    from quality_variants import Variant

    plain = dict(arguments)
    changes = plain.pop("changes")
    model = Variant(hierarchical(plain, seq_len).model, changes)
    return Contender(model, model.losses, model)


def alone(model: nn.Module, loss: Callable[[Tensor], Tensor]) -> Contender:
    """Of a model whose loss is the cross-entropy."""

    def losses(ids: Tensor) -> tuple[Tensor, Tensor]:
        value = loss(ids)
        return value, value

    return Contender(model, losses)


def x_transformers(arguments: dict[str, Any], seq_len: int) -> Contender:
    from x_transformers import AutoregressiveWrapper, Decoder, TransformerWrapper

    layers = Decoder(rotary_pos_emb=True, attn_flash=True, **arguments)
    model = TransformerWrapper(num_tokens=BYTES, max_seq_len=seq_len, use_abs_pos_emb=False, attn_layers=layers)
    wrapped = AutoregressiveWrapper(model, ignore_index=IGNORED)
    return alone(wrapped, wrapped)


def megabyte(arguments: dict[str, Any], seq_len: int) -> Contender:
    """It begins with a token of its own, and so predicts all that it is given."""
    from MEGABYTE_pytorch import MEGABYTE

    shape = dict(arguments)
    patch = shape.pop("patch")
    lengths = (seq_len // patch, patch)
    model = MEGABYTE(num_tokens=BYTES, max_seq_len=lengths, rel_pos=True, flash_attn=True, pad_id=IGNORED, **shape)
    return alone(model, lambda ids: model(ids[:, 1:], return_loss=True))


def hourglass(arguments: dict[str, Any], seq_len: int) -> Contender:
    from hourglass_transformer_pytorch import HourglassTransformerLM
    from hourglass_transformer_pytorch.autoregressive_wrapper import AutoregressiveWrapper

    model = HourglassTransformerLM(num_tokens=BYTES, max_seq_len=seq_len, **arguments)
    wrapped = AutoregressiveWrapper(model, pad_value=IGNORED)
    return alone(wrapped, wrapped)


@dataclass(frozen=True)
class Kind:
    make: Callable[[dict[str, Any], int], Contender]
    package: str | None = None  # in the folder of packages


KINDS = {
    "ours": Kind(hierarchical),
    "variant": Kind(variant),
    "reference 0.2.0": Kind(hierarchical, "reference 0.2.0"),
    "reference 0.4.0": Kind(hierarchical, "reference 0.4.0"),
    "x-transformers": Kind(x_transformers, "x-transformers"),
    "MEGABYTE": Kind(megabyte, "MEGABYTE"),
    "hourglass": Kind(hourglass, "hourglass"),
}


def optimizers(model: nn.Module, run: Run) -> list[Optimizer]:
    """As the package trains its own models: Muon for hidden matrices, AdamW for tables of ids and all that is no
    matrix; or AdamW for everything. Tables of n-grams have a learning rate of their own."""
    tables = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    matrices: list[nn.Parameter] = []
    coarse: list[nn.Parameter] = []
    ngrams: list[nn.Parameter] = []
    rest: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        is_table = id(parameter) in tables or "to_logits" in name
        if "ngram" in name and parameter.ndim == 2:
            ngrams.append(parameter)
        elif run.optimizer == "muon" and parameter.ndim == 2 and not is_table:
            (coarse if COARSE.search(name) and run.coarse_lr != 1 else matrices).append(parameter)
        else:
            rest.append(parameter)
    groups: list[dict[str, Any]] = [{"params": rest, "lr": run.rest_lr if run.optimizer == "muon" else run.lr}]
    if ngrams:
        groups.append({"params": ngrams, "lr": run.ngram_lr})
    made: list[Optimizer] = [AdamW(groups, betas=(0.9, 0.95), weight_decay=0.0, fused=True)]
    if matrices:
        by_muon = [{"params": matrices}, {"params": coarse, "lr": run.lr * run.coarse_lr}][: 1 + bool(coarse)]
        made.append(Muon(by_muon, lr=run.lr, weight_decay=0.0, adjust_lr_fn="original"))
    return made


def trained_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def flops_of_step(contender: Contender, ids: Tensor) -> int:
    """Of forward and backward of one batch: three times the products of the forward, counted by torch.

    Ours count their own, since what their kernels do is hidden from torch; both count what has to be done, and not
    what is done twice to save memory.
    """
    model: Any = contender.model
    if hasattr(model, "flops"):
        return int(model.flops(ids.shape[1] - 1, training=True).total) * len(ids)
    from torch.nn.attention import SDPBackend, sdpa_kernel
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        contender.losses(ids)
    return 3 * int(counter.get_total_flops())
