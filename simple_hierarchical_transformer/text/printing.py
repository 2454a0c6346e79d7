"""Bytes as text that any terminal can show, and prompts as ids."""

from __future__ import annotations

import codecs
import re
from collections.abc import Sequence

import torch
from torch import Tensor

NUM_BYTES = 256
ENCODING, ERRORS = "utf-8", "backslashreplace"

# All but line feed and tab: a terminal obeys them, and an untrained model writes them
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: bytes) -> str:
    """Bytes as text that any terminal can show: what is no UTF-8, and control characters, are escaped as `\\x…`."""
    return _escape_controls(text.decode(ENCODING, ERRORS))


class TextStream:
    """Bytes that arrive in pieces, as text that any terminal can show.

    All that `feed` and `finish` return is together what `printable` makes of all the bytes, however they were cut.

    Example:
        >>> stream = TextStream()
        >>> [stream.feed(piece) for piece in (b"gr\\xc3", b"\\xb6\\xc3\\x9f", b"er \\xe2\\x82", b"!")]
        ['gr', 'öß', 'er ', '\\\\xe2\\\\x82!']
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder(ENCODING)(ERRORS)

    def feed(self, piece: bytes) -> str:
        """What can be shown by now: all but the beginning of a character whose other bytes may still come."""
        text = self._decoder.decode(piece)
        held, _ = self._decoder.getstate()
        # Python waits for the third byte of a surrogate, although UTF-8 has none
        if b"\xed\xa0" <= held < b"\xee":
            text += self._decoder.decode(b"", final=True)
        return _escape_controls(text)

    def finish(self) -> str:
        """What was held back, escaped, as nothing follows; the stream is then as new."""
        return _escape_controls(self._decoder.decode(b"", final=True))


def _escape_controls(text: str) -> str:
    return CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", text)


def prompt_ids(prompt: Sequence[int], device: torch.device) -> Tensor:
    """The ids (1, t) of a prompt of at least one id, or, for a byte model, byte.

    Raises:
        ValueError: the prompt is empty
    """
    if not prompt:
        raise ValueError("prompt is empty, but the model continues a text: give at least one character, such as ' '")
    return torch.tensor([list(prompt)], dtype=torch.long, device=device)


def check_byte_model(num_tokens: int, folder: str) -> None:
    if num_tokens != NUM_BYTES:
        raise ValueError(
            f"model: {folder} has a vocabulary of {num_tokens} tokens, but text goes in and out as {NUM_BYTES} bytes: "
            "name a model that was trained on bytes, or call HierarchicalTransformer.generate with your tokenizer's ids"
        )
