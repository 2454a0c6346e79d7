"""The command `hierarchical-transformer`: train a model on text, let it write, and say what it costs and achieves."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

from . import __version__, commands
from .commands import COMMAND, fail
from .flags import unrecognized
from .generation import BACKENDS

# these read their flags themselves, since tyro isn't installed everywhere
FROM_DATACLASSES = {"train": commands.train, "describe": commands.describe}
PARTS = ("all", "validation", "test", "train")
Command = Callable[[dict[str, Any]], int]
Subparsers: TypeAlias = "argparse._SubParsersAction[Parser]"


class Parser(argparse.ArgumentParser):
    """Errors are one line, like all others of this command."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{COMMAND}: error: {message}; see {self.prog} --help\n")


class Help(argparse.ArgumentDefaultsHelpFormatter):
    """Says the defaults, where there are any."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return super()._get_help_string(action) if action.default not in (None, (), False, True) else action.help


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; its exit status: 0, 1 (training diverged), 2 (a mistake of the user's) or 130 (interrupted)."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        # text of any language is shown, escaped, where the terminal's encoding doesn't know it
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        status = run(sys.argv[1:] if arguments is None else arguments)
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


def run(arguments: Sequence[str]) -> int:
    if arguments and arguments[0] in FROM_DATACLASSES:
        return FROM_DATACLASSES[arguments[0]](arguments[1:])
    known, unknown = make_parser().parse_known_args(arguments)
    options = vars(known)
    command: Command = options.pop("command")
    parser: Parser = options.pop("parser")
    if unknown:
        raise ValueError(unrecognized(unknown, parser._option_string_actions, parser.prog))
    return command(options)


def make_parser() -> Parser:
    parser = Parser(prog=COMMAND, description=__doc__, allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"{COMMAND} {__version__}")
    subparsers = parser.add_subparsers(
        required=True, metavar="train | generate | evaluate | describe | plot | visualize | demo"
    )
    # the next two are run before they are parsed; they stand here for the help
    subparsers.add_parser("train", help="train a model on text")
    add_generate(subparsers)
    add_evaluate(subparsers)
    subparsers.add_parser("describe", help="say what a model costs")
    add_plot(subparsers)
    add_visualize(subparsers)
    add_demo(subparsers)
    return parser


def add(subparsers: Subparsers, name: str, command: Command, *, help: str, description: str) -> Parser:
    parser = subparsers.add_parser(
        name,
        help=help,
        description=description,
        formatter_class=Help,
        allow_abbrev=False,
    )
    parser.set_defaults(command=command, parser=parser)
    return parser


def add_generate(subparsers: Subparsers) -> None:
    parser = add(
        subparsers,
        "generate",
        commands.generate,
        help="continue a text with a trained model",
        description="Continue a text with a trained model, token by token; bytes that are no UTF-8 are shown as \\x…",
    )
    add_model(parser)
    parser.add_argument("--prompt", default="def ", help="text to continue")
    parser.add_argument("--length", type=length, default=300, help="tokens to write")
    parser.add_argument("--temperature", type=float, default=1.0, help="0: always the most likely token")
    parser.add_argument(
        "--filter-thres", type=float, help="share of the unlikeliest tokens never written; 0.9 without other filters"
    )
    parser.add_argument("--top-k", type=int, help="write one of the so many likeliest tokens")
    parser.add_argument("--top-p", type=float, help="write one of the likeliest tokens that together reach this")
    parser.add_argument("--min-p", type=float, help="write tokens at least so many times as likely as the likeliest")
    parser.add_argument("--repetition-penalty", type=float, help="above 1: what stands in the text comes less")
    parser.add_argument(
        "--speculative", action="store_true", help="several tokens at a time, with a model trained with a prophet loss"
    )
    parser.add_argument("--backend", choices=["auto", *BACKENDS], default="auto", help="how single tokens are computed")
    parser.add_argument("--seed", type=length, default=0, help="seed of the choice")
    add_device(parser)


def add_evaluate(subparsers: Subparsers) -> None:
    parser = add(
        subparsers,
        "evaluate",
        commands.evaluate,
        help="say how well a model predicts a text",
        description="Say in bits per byte how well a model predicts a text: overall, by position within the largest "
        "stride, and with each coarse stream left out of the merge.",
    )
    add_model(parser)
    parser.add_argument(
        "--data",
        nargs="+",
        metavar="PATH",
        help="files, folders and globs, or hf:NAME; the default: what the run was trained on, or the library of this "
        "Python",
    )
    parser.add_argument("--split", help="bytes to train on, to validate on and to test on, such as 90e6,5e6,5e6")
    parser.add_argument("--part", choices=PARTS, help="the default: all of --data without --split, else validation")
    parser.add_argument("--text-field", help="field of .jsonl lines with the text")
    parser.add_argument("--separator", type=length, help="id between two documents")
    parser.add_argument("--cache", type=Path, metavar="FOLDER", help="folder for text that has to be prepared")
    parser.add_argument("--batch-size", type=int, default=16, help="rows of text that are read side by side")
    parser.add_argument("--limit", type=int, metavar="TOKENS", help="evaluate so many tokens, spread over the text")
    add_device(parser)
    parser.add_argument("--json", action="store_true", help="as JSON, not as a table")
    parser.add_argument(
        "--no-ablation", dest="ablate", action="store_false", help="skip what each coarse stream is worth"
    )


def add_plot(subparsers: Subparsers) -> None:
    parser = add(
        subparsers,
        "plot",
        commands.plot,
        help="draw the curves of runs",
        description="Draw training and validation curves of one run or several, as a picture and as a page.",
    )
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="folder of a run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="where to; the default: the first run")
    parser.add_argument("--by", choices=("step", "tokens", "time"), default="step", help="what they are drawn against")


def add_visualize(subparsers: Subparsers) -> None:
    parser = add(
        subparsers,
        "visualize",
        commands.visualize,
        help="draw a model: its shape, what it sees, what surprises it",
        description="Draw a model as a PNG or an SVG, or, for surprise, as an HTML page.",
    )
    parser.add_argument("picture", choices=commands.PICTURES, help=" | ".join(commands.PICTURES), metavar="PICTURE")
    add_model(parser)
    parser.add_argument("--out", type=Path, metavar="FILE", help="where to; the default: its name, as .svg, or .html")
    parser.add_argument("--text", type=Path, metavar="FILE", help="what the model reads; the default: a Python module")
    parser.add_argument("--length", type=length, metavar="TOKENS", help="input tokens that are shown or read")
    parser.add_argument("--position", type=length, help="of the prediction whose receptive-field is measured")
    parser.add_argument("--borders", metavar="REGEX", help="of streams: where in the text segments are known to begin")
    add_device(parser)


def add_demo(subparsers: Subparsers) -> None:
    parser = add(
        subparsers,
        "demo",
        commands.demo,
        help="play with a model in a browser",
        description="Serve a page to this machine alone, on which a model writes: with its surprise, and with streams "
        "switched off. Ctrl-C ends it.",
    )
    add_model(parser)
    parser.add_argument("--port", type=int, default=7860, help="of this machine; 0: one that is free")
    add_device(parser)


def add_model(parser: Parser) -> None:
    parser.add_argument(
        "--model", required=True, metavar="FOLDER", help="folder of a run, of a checkpoint or of a model, or user/name"
    )


def add_device(parser: Parser) -> None:
    parser.add_argument("--device", default="auto", help="where to compute, such as cpu or cuda")


def length(text: str) -> int:
    if not 0 <= int(text) < 2**63:
        raise ValueError
    return int(text)
