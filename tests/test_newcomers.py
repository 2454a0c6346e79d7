"""Mistakes that newcomers make: each is told what it is about, what was given, what is allowed, and what to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer, cli

PLAIN: dict[str, Any] = {"num_tokens": 256, "dim": 64, "depth": 2, "heads": 2, "dim_head": 16, "seq_len": 64}
TWO = PLAIN | {"hierarchies": (1, 4), "hierarchical_stride": (1, 4), "window_sizes": (8, None)}
IDS = torch.randint(0, 256, (2, 33), generator=torch.Generator().manual_seed(0))


def build(**changed: Any) -> HierarchicalTransformer:
    return HierarchicalTransformer(**TWO | changed)


def loaded_with_another_width() -> None:
    build().save_pretrained("model")
    HierarchicalTransformer.from_pretrained("model", dim=32)


# what is done, and what the message holds: argument, value, what is allowed, remedy
Mistake = tuple[Callable[[], Any], str]
MISTAKES: dict[str, Mistake] = {
    "arguments without names": (
        lambda: HierarchicalTransformer(256, 512, 6),  # type: ignore[misc]
        "takes no argument without a name, got 3: write HierarchicalTransformer(num_tokens=256, dim=512, depth=6)",
    ),
    "no width": (
        lambda: HierarchicalTransformer(num_tokens=256, depth=6),  # type: ignore[call-arg]
        "can't do without dim, which it wasn't given: add dim=512",
    ),
    "a misspelt argument": (
        lambda: build(window_size=64),
        "has no argument window_size, got 64 of type int: did you mean window_sizes?",
    ),
    "nanoGPT's name of an argument": (
        lambda: build(n_layer=6),
        "has no argument n_layer, got 6 of type int: did you mean depth?",
    ),
    "an argument of others": (
        lambda: build(dropout=0.1),
        "has no argument dropout, got 0.1 of type float: leave it out; there are num_tokens, dim, depth",
    ),
    "an odd width": (lambda: build(dim=33), "dim of the stream with compress factor 1 must be even, since token shift "
                     "splits it in two halves, got 33: give 34"),
    "two widths for three streams": (
        lambda: HierarchicalTransformer(**PLAIN | {"dim": (128, 512), "hierarchies": (1, 2, 8)}),
        "dim has 2 values (128, 512) for 3 streams: give one value for all streams, or a tuple of 3",
    ),
    "a factor that is no power of two": (
        lambda: build(hierarchies=(1, 3)),
        "hierarchies must be a positive power of two, got 3; the nearest are 2 and 4",
    ),
    "a factor twice": (
        lambda: build(hierarchies=(1, 1)),
        "hierarchies must be unique compress factors, got (1, 1): drop the one that stands twice",
    ),
    "a stride above its factor": (
        lambda: build(hierarchical_stride=(1, 8)),
        "hierarchical_stride of the stream with compress factor 4 must divide the factor, got 8: choose a power of two "
        "from 1 to 4",
    ),
    "one stride for all": (
        lambda: build(hierarchical_stride=4),
        "compress factor 1 must divide the factor, got 4: choose 1 for this stream (a tuple gives each stream its own)",
    ),
    "no stream that can predict": (
        lambda: build(hierarchies=(4, 8), hierarchical_stride=(4, 8)),
        "must have stride 1, since it predicts after every input token, got hierarchical_stride 4: set its stride to 1",
    ),
    "a window in words": (
        lambda: build(window_sizes="full"),
        "if not None (all), must be a whole number, got 'full' of type str: give one such as 1",
    ),
    "a negative window": (lambda: build(window_sizes=-1), "got -1: give None for all"),
    "no layers": (lambda: build(depth=0), "depth must be at least 1, got 0: raise it"),
    "a loss with a negative weight": (
        lambda: build(recon_loss_weight=-1),
        "recon_loss_weight must be a finite number of at least 0, got -1: raise or lower it",
    ),
    "a loss without a coarse stream": (
        lambda: HierarchicalTransformer(**PLAIN, prophet_loss_weight=0.5),
        "prophet_loss_weight=0.5 has no effect without a stream with a compress factor above 1 in hierarchies: change "
        "that, or leave prophet_loss_weight out",
    ),
    "a predict stream that isn't there": (
        lambda: build(predict_hierarchy=2),
        "predict_hierarchy is the compress factor of the stream that predicts and must be one of (1, 4), got 2: choose",
    ),
    "ids as floats": (
        lambda: build()(torch.rand(2, 32)),
        "ids must be token ids of an integer type, got torch.float32: convert with ids.long()",
    ),
    "one row of ids": (
        lambda: build()(IDS[0]),
        "ids must have shape (batch, length), got (33,): use ids[None] for a batch of one",
    ),
    "ids of numpy": (
        lambda: build()(np.zeros((2, 8), dtype=int)),
        "ids must be a tensor of token ids, got ndarray: use torch.tensor(ids)",
    ),
    "text instead of ids": (
        lambda: build().generate("hello", 10),
        "prompt must be a tensor of token ids, got str: for a byte model, use torch.tensor([list(text.encode())])",
    ),
    "ids that are too long": (
        lambda: build()(torch.zeros(1, 100, dtype=torch.long)),
        "ids are 100 tokens long, but seq_len=64 is the most in one call: shorten them, build the model with a larger",
    ),
    "ids beyond the vocabulary": (
        lambda: build(num_tokens=100)(torch.full((1, 8), 200)),
        "ids[0, 0] is 200, but ids must be from 0 to 99, or ignore_index=-100 for padding: tokenise with the model's",
    ),
    "a loss of one token": (
        lambda: build()(IDS[:, :1], return_loss=True),
        "ids of length 1 have no next token to predict: with return_loss=True give at least 2 tokens a row",
    ),
    "transformers' name for the length": (
        lambda: build().generate(IDS, max_new_tokens=20),
        "model.generate has no argument max_new_tokens, got 20 of type int: did you mean seq_len?",
    ),
    "an empty prompt": (
        lambda: build().generate(IDS[:, :0], 10),
        "prompt is empty, of shape (2, 0): give at least one sequence of one token",
    ),
    "a nucleus of more than all": (
        lambda: build().generate(IDS, 3, top_p=1.5),
        "top_p must be above 0 and at most 1, got 1.5: 0.9 keeps the likeliest tokens",
    ),
    "a state for another batch": (
        lambda: (model := build())(IDS, state=model.init_state(1)),
        "state has batch size 1, but this call needs 2: make one with model.init_state(2)",
    ),
    "a folder that isn't there": (
        lambda: HierarchicalTransformer.from_pretrained("my-modle"),
        "my-modle: there is no such folder here: give the folder that save_pretrained wrote",
    ),
    "another width when loading": (
        loaded_with_another_width,
        "dim can't be changed when loading a model, only seq_len, window_sizes, use_flash_attn, use_xpos, "
        "checkpoint_activations can, since they change no parameter: leave dim out",
    ),
}  # fmt: skip
COMMANDS = {
    "train --data missing.txt": "missing.txt doesn't exist: check the path, seen from",
    "train --steps ten": "--steps must be a whole number, or none, got 'ten' of type str: correct it, or leave it out",
    "train --sequence-length 5": "unrecognized arguments: --sequence-length 5; the nearest flags are --sample-length",
    "train --data short.txt": "holds 5 bytes of text, but training and validation take at least one sequence of "
    "seq_len + 1 = 513 tokens each: add text to --data, or lower --seq-len",
    "visualize streams --model nowhere": "--model: nowhere isn't a folder: name the run folder that",
    "visualize shape --model nowhere": "invalid choice: 'shape' (choose from 'architecture', 'cost', 'receptive-field'",
    "demo --port 8000": "the following arguments are required: --model; see hierarchical-transformer demo --help",
    "plot nowhere": "nowhere isn't the folder of a run, since it has no metrics.jsonl: give another",
    "train --precision fp16": "precision must be one of float32, bfloat16, got 'fp16': choose one of them",
}


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("short")


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_in_python_are_told(name: str) -> None:
    act, message = MISTAKES[name]
    with pytest.raises((TypeError, ValueError, OSError)) as caught:
        act()
    assert message in str(caught.value)


@pytest.mark.parametrize("command", COMMANDS)
def test_mistakes_in_the_shell_are_told(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status = cli.main(command.split())
    except SystemExit as ended:
        status = ended.code
    assert status == 2
    assert COMMANDS[command] in " ".join(capsys.readouterr().err.split())


def test_there_are_at_least_thirty() -> None:
    assert len(MISTAKES) + len(COMMANDS) >= 30
