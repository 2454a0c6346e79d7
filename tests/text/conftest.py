from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

TEXT = """The hierarchy sees far with few tokens, so the fine stream gets by with a small window.

    def merge(streams):
        return sum(streams)  # größer, 日本語, 😀

Nothing is loaded whole; 1,234 lines are read one after the other.
"""


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or leaves anything in the user's cache, or asks the network."""
    folder = tmp_path_factory.mktemp("user-cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder / "simple-hierarchical-transformer"


@pytest.fixture(scope="session")
def bpe_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A `tokenizers` file of 400 byte pairs, as GPT-2's are, that would cut off and pad what is long or short."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 20, trainer)
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8, pad_id=0, pad_token="<|endoftext|>")
    path = tmp_path_factory.mktemp("tokenizer") / "bpe.json"
    tokenizer.save(str(path))
    return path


def json_lines(texts: Iterable[str], field: str = "text") -> bytes:
    return b"".join(json.dumps({"id": number, field: text}).encode() + b"\n" for number, text in enumerate(texts))


class Letters:
    """A tokenizer of one's own: the letters a to z, and everything else as the id 26."""

    vocab_size = 27

    def encode(self, text: str) -> Sequence[int]:
        return [ord(letter) - ord("a") if "a" <= letter <= "z" else 26 for letter in text]

    def decode(self, ids: Sequence[int]) -> str:
        return "".join(chr(ord("a") + index) if index < 26 else "?" for index in ids)
