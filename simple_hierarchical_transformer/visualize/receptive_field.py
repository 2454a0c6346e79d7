"""Which input tokens reach one prediction, measured, beside what the configuration allows."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..attention import Attention
from ..config import ModelConfig
from ..cost import earliest_inputs
from ..figures import COLORS, GRID, INK, new_figure, tidy
from ..inputs import check_ids
from ..model import HierarchicalTransformer
from ..validation import whole
from .cost import alone

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROBES = 4  # random mixtures of the outputs whose gradients are taken
FAINTEST = 1e-6  # share of the strongest that still has a place in the figure
LONGEST = 2048  # input tokens that are looked at by default


def plot_receptive_field(
    model: HierarchicalTransformer, position: int | None = None, ids: Tensor | None = None
) -> Figure:
    """How strongly each input token reaches one prediction: with all streams, by the predict stream alone, and by each
    coarse token that the prediction reads.

    Strength is the norm of the gradient of the output, mixed at random, with respect to what an input token is
    embedded as, relative to the strongest of its row; it is computed in float64, where what doesn't reach is exactly
    zero. Shaded is what the configuration allows: the theoretical receptive field.

    Args:
        model: a built model, trained or not; it stays as it is.
        position: fine position of the prediction, 0 … n - 1; the last by default.
        ids: input tokens (n,) or (1, n); by default random ones, as many as the model takes, at most 2,048.

    Returns:
        The figure.

    Raises:
        TypeError, ValueError: for ids that the model doesn't know or of several rows, and for a position that they
            don't have; and where matplotlib isn't installed.
    """
    ids = read_ids(model, ids)
    n = ids.shape[1]
    position = whole("position", n - 1 if position is None else position, least=0, most=n - 1)
    double = in_double(model)
    rows = list(rows_of(double, ids, position))
    figure = new_figure(9, 1.1 + 1.35 * len(rows))
    axes = figure.subplots(len(rows), 1, sharex=True, squeeze=False)[:, 0]
    for axis, row, color in zip(axes, rows, (INK, *COLORS * len(rows)), strict=False):
        draw_row(axis, row, color)
    axes[-1].set_xlabel("input token")
    axes[0].set_xlim(-0.5, position + 0.5 + 0.01 * n)
    figure.supylabel("strength, relative to the strongest", fontsize=10)
    return figure


def in_double(model: HierarchicalTransformer) -> HierarchicalTransformer:
    """A copy in float64, for which there are no fused kernels."""
    double: HierarchicalTransformer = copy.deepcopy(model).double().eval()
    for module in double.modules():
        if isinstance(module, Attention):
            module.use_flash_attn = None
    return double


@dataclass(frozen=True)
class Row:
    """One output, the strength of each input token (n,), and the input tokens that could reach it."""

    name: str
    strength: Tensor
    earliest: int
    last: int


def rows_of(model: HierarchicalTransformer, ids: Tensor, position: int) -> Iterator[Row]:
    config = model.config

    def earliest(shape: ModelConfig, *indices: int) -> int:
        """Of what the tokens of some streams depend on that are the newest at the position."""
        strides = {i: shape.streams[i].stride for i in indices}
        return int(earliest_inputs(shape, {i: torch.tensor([position // s * s]) for i, s in strides.items()}))

    several = len(config.streams) > 1
    reads = range(len(config.streams)) if config.predict_use_all else (config.predict_index,)
    name = f"the prediction after position {position:,}"
    yield Row(name, measured(model, ids, position), earliest(config, *reads), position)
    if several and not config.predict_use_all:
        strength = measured(model, ids, position, ablate=True)
        yield Row("the same without any merge", strength, earliest(alone(config, see_all=False), 0), position)
    others = [i for i in range(len(config.streams)) if i != config.predict_index]
    for i in sorted(others, key=lambda i: config.streams[i].compress_factor):
        s = config.streams[i]
        last = position // s.stride * s.stride
        name = f"its token of the stream of factor {s.compress_factor}"
        yield Row(name, measured(model, ids, position, stream=i), earliest(config, i), last)


def read_ids(model: HierarchicalTransformer, ids: Tensor | None) -> Tensor:
    """(1, n), on the model's device."""
    if ids is None:
        generator = torch.Generator().manual_seed(0)
        drawn = torch.randint(0, model.num_tokens, (1, min(model.seq_len, LONGEST)), generator=generator)
        padding = drawn == model.config.ignore_index  # which reaches nothing
        return torch.where(padding, (drawn + 1) % model.num_tokens, drawn).to(model.device)
    ids = check_ids(ids[None] if isinstance(ids, Tensor) and ids.ndim == 1 else ids)
    if len(ids) != 1 or not 1 <= ids.shape[1] <= model.seq_len:
        raise ValueError(
            f"ids must be one row of 1 to {model.seq_len} tokens, got {tuple(ids.shape)}: give such as "
            f"ids[:1, -{model.seq_len}:]"
        )
    return ids.to(model.device)


def measured(
    model: HierarchicalTransformer, ids: Tensor, position: int, *, stream: int | None = None, ablate: bool = False
) -> Tensor:
    """How strongly each input token (n,) reaches the logits at a position, or there the newest token of a stream.

    An n-gram's vector counts for all the input tokens that it is made of.
    """
    held: list[Tensor] = []

    def hold(module: torch.nn.Module, given: object, output: Tensor) -> Tensor:
        held.append(output.detach().requires_grad_())
        return held[-1]

    sources = [model.token_emb, *([model.ngrams] if model.ngrams is not None else [])]
    hooks = [source.register_forward_hook(hold) for source in sources]
    try:
        with torch.enable_grad():
            if stream is None:
                output = model(ids, ablate_hierarchical_merge=ablate)[0, position]
            else:
                token = position // model.config.streams[stream].stride
                output = model(ids, return_hierarchical_embeds=True)[stream][0, token]
            generator = torch.Generator().manual_seed(0)
            probes = torch.randn(PROBES, len(output), generator=generator, dtype=torch.float64).to(output.device)
            squares = [torch.zeros(ids.shape[1], dtype=torch.float64) for _ in held]
            for probe in probes:
                gradients = torch.autograd.grad(output @ probe, held, retain_graph=True, allow_unused=True)
                for square, gradient in zip(squares, gradients, strict=True):
                    if gradient is not None:
                        square += gradient[0].square().sum(dim=-1).cpu()
    finally:
        for hook in hooks:
            hook.remove()
    embedded, *of_ngrams = squares
    longest = max(model.config.ngrams.sizes, default=1)
    for square in of_ngrams:
        for back in range(longest):
            embedded[: len(square) - back] += square[back:]
    return embedded.sqrt()


def draw_row(axis: Axes, row: Row, color: str) -> None:
    relative = row.strength / row.strength.max().clamp(min=torch.finfo(torch.float64).tiny)
    count = int((relative > 0).sum())
    axis.axvspan(row.earliest - 0.5, row.last + 0.5, color=GRID, zorder=0)
    heights = [max(value, FAINTEST) for value in relative.tolist()]
    edges = [place - 0.5 for place in range(len(heights) + 1)]
    axis.stairs(heights, edges, baseline=FAINTEST, fill=True, color=color, linewidth=0)
    axis.set_yscale("log")
    axis.set_ylim(FAINTEST, 2)
    axis.set_yticks([1e-6, 1e-4, 1e-2, 1])
    tidy(axis, grid="y")
    sees = f"reached by {count:,} input tokens, of {row.last - row.earliest + 1:,} that could (grey)"
    axis.set_title(f"{row.name}: {sees}", loc="left", fontsize=9.5)
