"""What each command does, from the options that were given to the lines that are shown."""

from __future__ import annotations

import json
import re
import sys
import textwrap
import time
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import HierarchicalTransformer, hub
from .configure import check_data, configure
from .describe import DescribeArguments, saved_arguments
from .describe import describe as describe_model
from .flags import Sources, read_flags
from .sampling import Sampling
from .text.corpus import Corpus
from .text.data import load_split, load_whole
from .text.extras import missing_extra
from .text.printing import TextStream, check_byte_model, prompt_ids
from .text.tokenizer import TextTokenizer, find_tokenizer
from .training.checkpoints import Checkpoints
from .training.config import TrainConfig, as_split
from .training.run_folder import CONFIG_FILE, MODEL_FOLDER
from .training.settings import MODEL, read_toml
from .validation import whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COMMAND = "hierarchical-transformer"
PICTURES = {  # and the options that each of them has
    "architecture": {"length"},
    "cost": set(),
    "receptive-field": {"text", "length", "position"},
    "streams": {"text", "length", "borders"},
    "surprise": {"text", "length"},
}
PAGE = "surprise"
PAGE_LENGTH, PICTURE_LENGTH = 4000, 2048  # tokens of a text that are looked at by default
TRAIN_EXTRA = {"accelerate", "tqdm", "tomli_w"}


def train(arguments: Sequence[str]) -> int:
    given = read_flags(
        arguments,
        (Sources, TrainConfig),
        program=f"{COMMAND} train",
        description="Train a model on text: the Python interpreter's own library, or your files.",
    )
    try:
        from .training.loop import CheckpointNotWrittenError, NonFiniteError
        from .training.loop import train as train_model
    except ModuleNotFoundError as error:
        if error.name not in TRAIN_EXTRA:
            raise
        raise missing_extra(error.name, "training", extra="train") from error
    config = configure(given)
    check_data(config)
    try:
        result = train_model(config, report=report)
    except (CheckpointNotWrittenError, NonFiniteError, BrokenPipeError) as error:
        return fail(error, 1)
    return 130 if result.interrupted else 0


def report(line: str) -> None:
    print(line, flush=True)


def fail(error: Exception, status: int) -> int:
    lines = [str(error), *getattr(error, "__notes__", ())]
    print(f"{COMMAND}: error: {' '.join('; '.join(lines).split())}", file=sys.stderr)
    return status


def generate(options: Mapping[str, Any]) -> int:
    folder = find_model(options["model"])
    model = HierarchicalTransformer.from_pretrained(folder)
    tokenizer = find_tokenizer(folder)
    check_vocabulary(model.num_tokens, tokenizer, folder)
    model = move(model, options["device"])
    # the shell hands over bytes that are no UTF-8 as lone surrogates
    prompt = options["prompt"].encode("utf-8", "surrogateescape")
    ids = tokenizer.encode(prompt)
    tokens = model.stream(
        prompt_ids(ids, model.device),
        options["length"],
        generator=torch.Generator(model.device).manual_seed(options["seed"]),
        **{field.name: options[field.name] for field in fields(Sampling)},
        speculative=options["speculative"],
        backend=options["backend"],
    )
    write(prompt, decoded(ids, tokens, tokenizer))
    return 0


def check_vocabulary(num_tokens: int, tokenizer: TextTokenizer, folder: Path) -> None:
    """Refuse a model that knows other ids than its tokenizer's and, perhaps, a separator just past them."""
    if tokenizer.vocab_size <= num_tokens <= tokenizer.vocab_size + 1:
        return
    if tokenizer.is_bytes:
        check_byte_model(num_tokens, str(folder))
    raise ValueError(
        f"model: {folder} has a vocabulary of {num_tokens} tokens, but its tokenizer {tokenizer.name} one of "
        f"{tokenizer.vocab_size}: put the tokenizer there that it was trained with"
    )


def decoded(prompt: list[int], tokens: Iterable[Tensor], tokenizer: TextTokenizer) -> Iterator[bytes]:
    """Tokens (1,) that come one after the other behind a prompt, as the bytes that are sure by then."""
    stream = tokenizer.stream()
    stream.feed(prompt)  # whether a word begins with a space depends on what stands before it
    for token in tokens:
        yield stream.feed(token.tolist())
    yield stream.finish()


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


def find_model(name: str) -> Path:
    """The folder of the model itself, given that, the folder of its run, or its name on the Hub."""
    folder = Path(name)
    if (folder / MODEL_FOLDER).is_dir():
        return folder / MODEL_FOLDER
    checkpoints = Checkpoints(folder, keep=1)
    if steps := checkpoints.steps():
        raise ValueError(
            f"--model: the run in {folder} isn't finished, so it has no {MODEL_FOLDER}/ yet: name one of its "
            f"checkpoints, such as {checkpoints.path(max(steps))}"
        )
    if folder.is_dir():
        return folder
    if hub.REPOSITORY.fullmatch(name) and not folder.exists():
        return hub.find(name)
    raise FileNotFoundError(
        f"--model: {name} isn't a folder: name the run folder that `{COMMAND} train` left, its {MODEL_FOLDER}/, or a "
        "model on the Hub, user/name"
    )


def describe(arguments: Sequence[str]) -> int:
    given = read_flags(
        arguments,
        (Sources, DescribeArguments),
        program=f"{COMMAND} describe",
        description="Say what a model costs: parameters, multiply-adds, memory, and how far it sees. It isn't built, "
        "so any size will do.",
    )
    as_json, folder = given.pop("json", False), given.pop("saved", None)
    measure = {name: given.pop(name) for name in ("dtype", "batch_size") if name in given}
    if folder is None:
        num_tokens = given.pop("num_tokens", DescribeArguments.num_tokens)
        wanted = configure(given).model_arguments(num_tokens)
    else:
        model = given.pop(MODEL, {})
        wanted = saved_arguments(find_model(str(folder)), {**given, **model})
    description = describe_model(wanted, **measure)
    print(json.dumps(description.as_dict(), indent=2) if as_json else description.table())
    return 0


def evaluate(options: Mapping[str, Any]) -> int:
    from .evaluation import evaluate as evaluate_model

    folder = find_model(options["model"])
    model = HierarchicalTransformer.from_pretrained(folder)
    corpus, what = text_to_evaluate(options, folder, model.seq_len)
    evaluation = evaluate_model(
        move(model, options["device"]),
        corpus,
        batch_size=options["batch_size"],
        limit=options["limit"],
        ablate=options["ablate"],
    )
    report_aside(f"text: {what}, {len(corpus):,} tokens")
    print(json.dumps(evaluation.as_dict(), indent=2) if options["json"] else evaluation.table())
    return 0


def text_to_evaluate(options: Mapping[str, Any], folder: Path, seq_len: int) -> tuple[Corpus, str]:
    """The text that the options name, or else the validation text of the model's run, and words that say which."""
    settings = {name: options[name] for name in ("data", "split", "text_field", "separator", "cache")}
    given = {name: value for name, value in settings.items() if value is not None}
    run = Path(options["model"]) / CONFIG_FILE
    if "data" not in given and run.is_file():
        given = {name: value for name, value in read_toml(run).items() if name in settings} | given
    paths, split = given.pop("data", ()), given.pop("split", None)
    part = options["part"] or ("all" if options["data"] and split is None else "validation")
    given |= {"tokenizer": find_tokenizer(folder), "report": report_aside}
    given = {name: value for name, value in given.items() if value is not None}
    if part == "all":
        corpus, what = load_whole(paths, **given)
        return corpus, f"all of {what}"
    found = load_split(paths, seq_len, split=None if split is None else as_split(split), **given)
    of_part = {"train": found.train, "validation": found.validation, "test": found.test}[part]
    if of_part is None:
        raise ValueError("--part test: the text has no such part: say with --split where it stands")
    return of_part, f"the {part} part of {found.description}"


def report_aside(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def plot(options: Mapping[str, Any]) -> int:
    from .training.plot import plot as plot_runs

    for path in plot_runs(options["runs"], options["out"], options["by"]):
        print(path)
    return 0


def visualize(options: Mapping[str, Any]) -> int:
    from . import figures

    picture = options["picture"]
    given = {name for name in ("text", "length", "position", "borders") if options[name] is not None}
    if unused := sorted(given - PICTURES[picture]):
        takes = ", ".join(f"--{name}" for name in sorted(PICTURES[picture])) or "none of them"
        raise ValueError(f"--{unused[0]} has no effect on {picture}, which takes {takes}: leave it out")
    suffixes = (figures.PAGE,) if picture == PAGE else figures.FORMATS
    out = figures.check_path(options["out"] or Path(picture + suffixes[-1]), suffixes)
    folder = find_model(options["model"])
    model = move(HierarchicalTransformer.from_pretrained(folder), options["device"])
    figures.write(picture_of(model, folder, options), out)
    print(out)
    return 0


def picture_of(model: HierarchicalTransformer, folder: Path, options: Mapping[str, Any]) -> Figure | str:
    """The figure that was asked for, or the page."""
    from . import visualize as pictures

    picture = options["picture"]
    if picture == "architecture":
        return pictures.plot_architecture(model, options["length"])
    if picture == "cost":
        return pictures.plot_cost(model)
    tokenizer = find_tokenizer(folder)
    check_vocabulary(model.num_tokens, tokenizer, folder)
    text = Path(textwrap.__file__) if options["text"] is None else options["text"]
    if not text.is_file():
        raise FileNotFoundError(f"--text: {text} isn't a file: name one, or leave --text out")
    most = pictures.LONGEST_PAGE if picture == PAGE else model.seq_len
    usual = min(PAGE_LENGTH if picture == PAGE else PICTURE_LENGTH, most)
    length = usual if options["length"] is None else whole("--length", options["length"], least=2, most=most)
    ids = tokenizer.encode(text.read_bytes())[:length]
    if len(ids) < 2:
        raise ValueError(f"--text: {text} has {len(ids)} tokens, and it takes two at least: name a longer one")
    if picture == PAGE:
        title = f"What surprised {options['model']} in {text.name}"
        return pictures.plot_surprise(model, tokenizer.decode(ids), tokenizer=tokenizer, title=title)
    row = torch.tensor([ids], dtype=torch.long)
    if picture == "streams":
        return pictures.plot_streams(model, row, borders_in(ids, options["borders"], tokenizer))
    return pictures.plot_receptive_field(model, options["position"], row)


def borders_in(ids: Sequence[int], pattern: str | None, tokenizer: TextTokenizer) -> list[int]:
    """The tokens in which a pattern begins."""
    if pattern is None:
        return []
    try:
        compiled = re.compile(pattern.encode(), re.MULTILINE)
    except re.error as error:
        raise ValueError(f"--borders {pattern!r} is no regular expression, {error}: give such as '^def '") from error
    text, stream, ends = b"", tokenizer.stream(), []
    for token in ids:
        text += stream.feed([token])
        ends.append(len(text))
    return [bisect_right(ends, match.start()) for match in compiled.finditer(text) if match.start() < len(text)]


def demo(options: Mapping[str, Any]) -> int:
    from .demo import make_server

    folder = find_model(options["model"])
    model = HierarchicalTransformer.from_pretrained(folder)
    tokenizer = find_tokenizer(folder)
    check_vocabulary(model.num_tokens, tokenizer, folder)
    server = make_server(move(model, options["device"]), tokenizer, port=options["port"], name=options["model"])
    report(f"{server.url} (Ctrl-C ends it)")
    with server:
        server.serve_forever()
    return 0
