"""Between text, bytes and token ids."""

from __future__ import annotations

import re

import torch

from ..model import HierarchicalTransformer
from .config import NUM_BYTES

# All but line feed and tab: a terminal obeys them, and an untrained model writes them
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def printable(text: bytes) -> str:
    """Bytes as text that any terminal can show: what is no UTF-8, and control characters, are escaped as `\\x…`."""
    decoded = text.decode("utf-8", errors="backslashreplace")
    return CONTROL.sub(lambda match: f"\\x{ord(match.group()):02x}", decoded)


def continue_text(
    model: HierarchicalTransformer,
    prompt: bytes,
    length: int,
    *,
    temperature: float = 1.0,
    filter_thres: float = 0.9,
    seed: int = 0,
) -> bytes:
    """The `length` bytes that a byte model writes after a prompt of at least one byte.

    Raises:
        ValueError: the prompt is empty
    """
    if not prompt:
        raise ValueError("prompt is empty, but the model continues a text: give at least one character, such as ' '")
    device = model.device
    ids = torch.tensor([list(prompt)], dtype=torch.long, device=device)
    generator = torch.Generator(device).manual_seed(seed)
    new = model.generate(ids, length, temperature=temperature, filter_thres=filter_thres, generator=generator)
    return bytes(new[0].tolist())


def check_byte_model(num_tokens: int, folder: str) -> None:
    if num_tokens != NUM_BYTES:
        raise ValueError(
            f"model: {folder} has a vocabulary of {num_tokens} tokens, but text goes in and out as {NUM_BYTES} bytes: "
            "name a model that was trained on bytes, or call HierarchicalTransformer.generate with your tokenizer's ids"
        )
