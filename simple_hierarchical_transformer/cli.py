"""The command `hierarchical-transformer`: train a model on text, let it write, and say what it costs."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

import torch

from . import HierarchicalTransformer, __version__
from .describe import DTYPES
from .describe import describe as describe_model
from .flags import add_model_flags, flag_adder, split_options
from .generation import BACKENDS
from .sampling import Sampling
from .text.printing import NUM_BYTES, TextStream, check_byte_model, prompt_ids
from .training.config import DEVICES, TrainConfig
from .training.run_folder import MODEL_FOLDER

COMMAND = "hierarchical-transformer"
EXTRA = {"accelerate", "tqdm"}


class Parser(argparse.ArgumentParser):
    """Errors are one line, like all others of this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{COMMAND}: error: {message}; see {self.prog} --help\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0, 1 (training diverged), 2 (a mistake of the user's) or 130 (interrupted)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # text of any language is shown, escaped, where the terminal's encoding doesn't know it
        sys.stdout.reconfigure(errors="backslashreplace")
    known, unknown = make_parser().parse_known_args(arguments)
    options = vars(known)
    command = options.pop("command")
    if unknown:
        hint = f"see {COMMAND} {command.__name__} --help"
        return fail(ValueError(f"unrecognized arguments: {' '.join(unknown)}; {hint}"), 2)
    try:
        status: int = command(options)
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        # whoever read the output, such as `head`, has seen enough; Python flushes once more when it ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError) as error:
        return fail(error, 2)
    except KeyboardInterrupt:
        print(f"{COMMAND}: interrupted", file=sys.stderr)
        return 130


def fail(error: Exception, status: int) -> int:
    lines = [str(error), *getattr(error, "__notes__", ())]
    print(f"{COMMAND}: error: {' '.join('; '.join(lines).split())}", file=sys.stderr)
    return status


def train(options: dict[str, Any]) -> int:
    try:
        from .training.loop import NonFiniteError
        from .training.loop import train as train_model
    except ModuleNotFoundError as error:
        if error.name not in EXTRA:
            raise
        raise ValueError(
            f"training needs the package {error.name}, which isn't installed: "
            'pip install "simple-hierarchical-transformer[train]"'
        ) from error
    model, settings = split_options(options)
    try:
        result = train_model(TrainConfig(**settings, model=model), report=report)
    except (NonFiniteError, BrokenPipeError) as error:
        return fail(error, 1)
    return 130 if result.interrupted else 0


def report(line: str) -> None:
    print(line, flush=True)


def generate(options: dict[str, Any]) -> int:
    folder = find_model(options["model"])
    model = HierarchicalTransformer.from_pretrained(folder)
    check_byte_model(model.num_tokens, str(folder))
    model = move(model, options["device"])
    # the shell hands over bytes that are no UTF-8 as lone surrogates
    prompt = options["prompt"].encode("utf-8", "surrogateescape")
    tokens = model.stream(
        prompt_ids(prompt, model.device),
        options["length"],
        generator=torch.Generator(model.device).manual_seed(options["seed"]),
        **{field.name: options[field.name] for field in fields(Sampling)},
        speculative=options["speculative"],
        backend=options["backend"],
    )
    write(prompt, (bytes(token.tolist()) for token in tokens))
    return 0


def write(prompt: bytes, pieces: Iterator[bytes]) -> None:
    """Show a text as it comes, and then how fast it came."""
    shown, count, start = TextStream(), 0, time.perf_counter()
    first = start
    sys.stdout.write(shown.feed(prompt))
    sys.stdout.flush()
    try:
        for piece in pieces:
            first = time.perf_counter() if count == 0 else first
            count += len(piece)
            sys.stdout.write(shown.feed(piece))
            sys.stdout.flush()
    finally:  # an interrupted text is as good as another
        seconds = time.perf_counter() - start
        print(shown.finish(), flush=True)
        rate = f": {count / seconds:,.0f} bytes per second, the first after {first - start:.2f} s" if count else ""
        print(f"{count} bytes in {seconds:.2f} s{rate}", file=sys.stderr)


def move(model: HierarchicalTransformer, device: str) -> HierarchicalTransformer:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:  # torch built without CUDA asserts
        raise ValueError(f"--device: torch finds no device {device!r} here: use --device cpu") from error


def describe(options: dict[str, Any]) -> int:
    as_json, folder = options.pop("json"), options.pop("model")
    settings = {name: options.pop(name) for name in ("dtype", "batch_size")}
    description = describe_model(options, None if folder is None else find_model(folder), **settings)
    print(json.dumps(description.as_dict(), indent=2) if as_json else description.table())
    return 0


def find_model(folder: Path) -> Path:
    """The folder of the model itself, given that or the folder of its run."""
    if not folder.is_dir():
        raise FileNotFoundError(
            f"--model: {folder} isn't a folder: name the run folder that `{COMMAND} train` left, or its {MODEL_FOLDER}/"
        )
    return folder / MODEL_FOLDER if (folder / MODEL_FOLDER).is_dir() else folder


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(prog=COMMAND, description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{COMMAND} {__version__}")
    commands = parser.add_subparsers(required=True, metavar="train | generate | describe")
    add_train(commands)
    add_generate(commands)
    add_describe(commands)
    return parser


def add_train(commands: argparse._SubParsersAction[Parser]) -> None:
    """Flags that aren't given are left out of the options, so that every default stands in `TrainConfig` alone."""
    parser = commands.add_parser(
        "train",
        help="train a byte model on text",
        description="Train a byte model on text: the Python interpreter's own library, or your files.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.set_defaults(command=train)

    add = flag_adder(parser)
    add("--data", "files and folders, plain or .gz; default: the library of this Python", nargs="+", metavar="PATH")
    add("--out", "folder of the run; an earlier run in it is moved aside", metavar="FOLDER")
    add("--steps", "optimiser steps", type=int)
    add(
        "--minutes",
        "time to train, without the last validation and the sample; with --steps too, what ends first ends the run",
        type=float,
    )
    add("--seed", "seed of weights, batches and the sample", type=int)
    add("--device", "where to train", choices=DEVICES)
    add("--batch-size", "sequences per step", type=int)
    add("--seq-len", "bytes per sequence", type=int)
    add("--muon-lr", "learning rate of the hidden matrices", type=float)
    add("--adamw-lr", "learning rate of everything else", type=float)
    add("--compile", "let torch.compile fuse the step: slow to start; made for GPUs", action="store_true")
    add("--validate-every", "steps between two validations", type=int)
    add("--sample-length", "bytes that the trained model writes at the end", type=int)
    add_model_flags(add)


def add_generate(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "generate",
        help="continue a text with a trained model",
        description="Continue a text with a trained model, byte by byte; bytes that are no UTF-8 are shown as \\x…",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.set_defaults(command=generate)
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help="folder of a run, or of a model")
    parser.add_argument("--prompt", default="def ", help="text to continue")
    parser.add_argument("--length", type=length, default=300, help="bytes to write")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the most likely byte")
    parser.add_argument(
        "--filter-thres", type=float, help="share of the unlikeliest bytes never written; 0.9 without other filters"
    )
    parser.add_argument("--top-k", type=int, help="write one of the so many likeliest bytes")
    parser.add_argument("--top-p", type=float, help="write one of the likeliest bytes that together reach this")
    parser.add_argument("--min-p", type=float, help="write bytes at least so many times as likely as the likeliest")
    parser.add_argument("--repetition-penalty", type=float, help="above 1: what stands in the text comes less")
    parser.add_argument(
        "--speculative", action="store_true", help="several bytes at a time, with a model trained with a prophet loss"
    )
    parser.add_argument("--backend", choices=["auto", *BACKENDS], default="auto", help="how single bytes are computed")
    parser.add_argument("--seed", type=length, default=0, help="seed of the choice")
    parser.add_argument("--device", default="auto", help="where to compute, such as cpu or cuda")


def add_describe(commands: argparse._SubParsersAction[Parser]) -> None:
    parser = commands.add_parser(
        "describe",
        help="say what a model costs",
        description="Say what a model costs: parameters, multiply-adds, memory, and how far it sees. It isn't built, "
        "so any size will do.",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    parser.set_defaults(command=describe)
    folder_help = "folder of a run, or of a model; without it, the flags say what is described"
    parser.add_argument("--model", type=Path, default=None, metavar="FOLDER", help=folder_help)
    parser.add_argument("--json", action="store_true", default=False, help="as JSON, not as a table")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="sequences whose activations are counted (default: 1)"
    )
    parser.add_argument(
        "--dtype", choices=DTYPES, default=DTYPES[0], help="type of activations and cache (default: float32)"
    )
    parser.add_argument("--num-tokens", type=int, help=f"size of the vocabulary (default: {NUM_BYTES})")
    add = flag_adder(parser)
    add("--seq-len", "input tokens per sequence; with --model, its own unless given", type=int)
    add_model_flags(add)


def length(text: str) -> int:
    if not 0 <= int(text) < 2**63:
        raise ValueError
    return int(text)
