"""A text as a page, coloured by how much each of its tokens surprises a model, and by what each stream contributed."""

from __future__ import annotations

import html
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..evaluation.bits_per_byte import check_known, chunk_length, cross_entropies, evaluating
from ..evaluation.report import ablations
from ..model import HierarchicalTransformer
from ..text.printing import TextStream
from ..text.tokenizer import TextTokenizer, Tokenizer, load_tokenizer
from ..validation import shown

LONGEST = 50_000  # tokens of a page, which a browser still shows at once


class Piece(NamedTuple):
    """Tokens that end with whole characters, and the bits that they took: None where nothing was predicted."""

    text: str
    bits: float | None
    more: tuple[float, ...]  # bits without each ablation, less those with all streams


def plot_surprise(
    model: HierarchicalTransformer,
    text: str | bytes,
    *,
    tokenizer: str | Path | Tokenizer | TextTokenizer = "bytes",
    title: str = "What surprised the model",
) -> str:
    """A page with the text, its background the darker the more bits a token took.

    Over a token, the page says its bits and by how many each coarse stream, and all merges together, made them fewer:
    what they are without that stream's contributions (`ablate_hierarchical_merge`), less what they are. Buttons colour
    the text by any of these instead: blue where the stream helped, orange where it misled.

    Every token is predicted after all those before it, by a decoding state; the first one isn't. The page needs no
    other file and no network.

    Args:
        model: a built model; it stays as it is.
        text: at most 50,000 tokens of it.
        tokenizer: that the model was trained with: "bytes", a `tokenizers` JSON file, the name of a tiktoken encoding,
            or an object with `encode`, `decode` and `vocab_size`.
        title: of the page.

    Returns:
        HTML, to be written to a file or shown in a notebook by `IPython.display.HTML`.

    Raises:
        TypeError, ValueError, OSError: for a text that isn't one, is too short or too long, or holds ids that the
            model doesn't know, and for a tokenizer that can't be had.
    """
    if not isinstance(text, (str, bytes)):
        raise TypeError(f"text must be a str or bytes, got {shown(text)}: give such as path.read_bytes()")
    known = load_tokenizer(tokenizer)
    ids = known.encode(text.encode("utf-8", "replace") if isinstance(text, str) else text)
    if not 2 <= len(ids) <= LONGEST:
        raise ValueError(
            f"text must have 2 to {LONGEST:,} tokens, got {len(ids):,}: {'lengthen' if len(ids) < 2 else 'shorten'} it"
        )
    row = torch.tensor([ids])
    check_known(row, model)
    names = ablations(model.config)
    bits = surprise(model, row)
    without = [(surprise(model, row, what) - bits).tolist() for what in names.values()]
    pieces = list(pieces_of(ids, bits.tolist(), without, known))
    return page(pieces, list(names), title, bits)


def surprise(model: HierarchicalTransformer, ids: Tensor, ablate: bool | int = False) -> Tensor:
    """Bits (n - 1,) of each of ids (1, n) but the first, after all before it."""
    losses = []
    with evaluating(model):
        state = model.init_state(1, max_rewind=0)
        size = chunk_length(1, model.num_tokens)
        for start in range(0, ids.shape[1] - 1, size):
            chunk = ids[:, start : start + size + 1].to(model.device)
            logits = model(chunk[:, :-1], state=state, ablate_hierarchical_merge=ablate)
            losses.append(cross_entropies(logits, chunk[:, 1:])[0].cpu().double())
    return torch.cat(losses) / torch.tensor(2.0).log()


def pieces_of(
    ids: Sequence[int], bits: Sequence[float], without: Sequence[Sequence[float]], tokenizer: TextTokenizer
) -> Iterator[Piece]:
    """Tokens one by one, but those of one character together."""
    stream, shown_as = tokenizer.stream(), TextStream()
    held: list[int] = []  # tokens whose characters aren't whole yet

    def piece(text: str) -> Piece:
        places = [place - 1 for place in held if place > 0]
        own = sum(bits[place] for place in places) if places else None
        return Piece(text, own, tuple(sum(each[place] for place in places) for each in without))

    for place, token in enumerate(ids):
        held.append(place)
        text = shown_as.feed(stream.feed([token]))
        if text:
            yield piece(text)
            held = []
    rest = shown_as.feed(stream.finish()) + shown_as.finish()
    if rest or held:
        yield piece(rest)


def page(pieces: Sequence[Piece], names: Sequence[str], title: str, bits: Tensor) -> str:
    template = files(__package__).joinpath("surprise.html").read_text(encoding="utf-8")
    spans = "".join(span(piece) for piece in pieces)
    summary = f"{len(bits):,} tokens, {bits.mean():.3f} bits per token"
    if names:
        gains = [sum(piece.more[i] for piece in pieces) / len(bits) for i in range(len(names))]
        summary += "".join(f"; {gain:+.3f} without {name}" for name, gain in zip(names, gains, strict=True))
    values: Mapping[str, str] = {
        "TITLE": html.escape(title),
        "SUMMARY": html.escape(summary),
        "NAMES": json.dumps(list(names)).replace("<", "\\u003c"),
        "TEXT": spans,
    }
    for name, value in values.items():
        template = template.replace(f"<!--{name}-->", value)
    return template


def span(piece: Piece) -> str:
    """One piece, with its figures as the page's script reads them."""
    if piece.bits is None:
        return f"<span>{html.escape(piece.text)}</span>"
    figures = " ".join(f"{value:.2f}" for value in (piece.bits, *piece.more))
    return f'<span data-b="{figures}">{html.escape(piece.text)}</span>'
