"""The model card: a page about a saved model, for people, with a head that the Hugging Face Hub reads."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from .config import ModelConfig, StreamConfig
from .files import write_atomically

CARD_FILE = "README.md"
TOKENIZER_FILE = "tokenizer.json"
LIBRARY = "simple-hierarchical-transformer"
TAGS = ("causal-lm", "hierarchical-transformer", "language-model", "pytorch")
BYTES = "bytes"
NUM_BYTES = 256
# the last line of a card: whoever changes anything before it makes the card their own
MARK = re.compile(
    r"<!-- made by save_pretrained, which replaces it as long as it is unchanged: (?P<sha256>\w{64}) -->\n"
)


def make_model_card(
    config: ModelConfig,
    *,
    title: str,
    location: str | None = None,
    parameters: int | None = None,
    data: str | Sequence[str] | None = None,
    figures: Mapping[str, str | float] | None = None,
    tokenizer: str | None = None,
    license: str | None = None,
    tags: Sequence[str] = (),
) -> str:
    """A model card in Markdown, with the YAML head of the Hub.

    Args:
        config: of the model.
        title: its name.
        location: what `from_pretrained` is given to load it: a folder, or a name on the Hub; the title by default.
        parameters: how many it has.
        data: what it was trained on, in words or as a list.
        figures: what was measured, such as {"steps": 2000, "tokens": 4_096_000, "validation bits per byte": 1.9}.
        tokenizer: bytes, a `tokenizers` JSON file, which lies beside the model as tokenizer.json, or the name of a
            tiktoken encoding; by default, bytes where the vocabulary has 256 ids, and else nothing is said.
        license: the licence, as the Hub names it: mit, apache-2.0, cc-by-4.0; none is named by default.
        tags: more tags than those that all models have.
    """
    if tokenizer is None and config.num_tokens == NUM_BYTES:
        tokenizer = BYTES
    parts = [
        front_matter(license, tags),
        f"# {title}",
        introduction(config, parameters),
        table(
            ["stream", "a token every", "summarises", "width", "heads", "sees back"],
            [stream_row(config, stream) for stream in config.streams],
        ),
    ]
    if data:
        lines = [data] if isinstance(data, str) else [f"- {line}" for line in data]
        parts += ["## Training data", "\n".join(lines)]
    if figures:
        rows = [[name, shown_figure(value)] for name, value in figures.items()]
        parts += ["## Figures", table(["what", "figure"], rows)]
    parts += ["## Usage", usage(title if location is None else location, tokenizer)]
    return marked("\n\n".join(parts) + "\n\n")


def front_matter(license: str | None, tags: Sequence[str]) -> str:
    """What the Hub reads; texts are in quotes, which YAML and JSON share."""
    lines = [f"library_name: {LIBRARY}", "pipeline_tag: text-generation"]
    if license is not None:
        lines.append(f"license: {quoted(license)}")
    lines += ["tags:", *(f"- {quoted(tag)}" for tag in dict.fromkeys((*TAGS, *tags)))]
    return "\n".join(["---", *lines, "---"])


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def introduction(config: ModelConfig, parameters: int | None) -> str:
    count, size = len(config.streams), "" if parameters is None else f" with {parameters:,} parameters"
    if count == 1 and not config.predict_stream.is_coarse:
        kind = "It is a plain transformer: one stream of tokens."
    else:
        kind = (
            f"It has {count} stream{'s' * (count > 1)} of tokens, of which the coarse ones summarise several input "
            "tokens each"
            + (
                f"; all are merged into the one of factor {config.predict_stream.compress_factor}."
                if count > 1
                else "."
            )
        )
    return (
        f"A causal language model{size}, of {config.depth} layer{'s' * (config.depth > 1)} and a vocabulary of "
        f"{config.num_tokens:,} ids, trained on sequences of up to {config.seq_len:,} tokens. {kind}"
    )


def stream_row(config: ModelConfig, stream: StreamConfig) -> list[str]:
    reach = stream.reach(config.seq_len)
    if stream.window_size == 0:
        sees = "nothing: it has no attention"
    elif stream.window_size is None:
        sees = "everything"
    else:
        sees = f"{counted(reach, 'token')} of its own, {counted(reach * stream.compress_factor, 'input token')}"
    return [
        f"of factor {stream.compress_factor}",
        counted(stream.stride, "input token"),
        counted(stream.compress_factor, "input token"),
        f"{stream.dim:,}",
        f"{stream.heads} of width {stream.dim_head}",
        sees,
    ]


def counted(number: int, what: str) -> str:
    return f"{number:,} {what}{'s' * (number != 1)}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in line)} |" for line in lines)


def shown_figure(value: str | float) -> str:
    if isinstance(value, str):
        return value
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def usage(location: str, tokenizer: str | None) -> str:
    """Code that loads the model and continues a text."""
    imports, encode, decode = ["import torch"], "prompt = torch.tensor([[0]])  # token ids", "print(ids.tolist())"
    if tokenizer == BYTES:
        encode = 'prompt = torch.tensor([list(b"Once upon a time")])'
        decode = 'print(bytes(ids.tolist()).decode(errors="replace"))'
    elif tokenizer is not None and tokenizer.endswith(".json"):
        imports += ["from tokenizers import Tokenizer"]
        encode = f"tokenizer = Tokenizer.from_file({quoted(f'{location}/{TOKENIZER_FILE}')})\n"
        encode += 'prompt = torch.tensor([tokenizer.encode("Once upon a time").ids])'
        decode = "print(tokenizer.decode(ids.tolist()))"
    elif tokenizer is not None:
        imports = ["import tiktoken", *imports]
        encode = f"tokenizer = tiktoken.get_encoding({quoted(tokenizer)})\n"
        encode += 'prompt = torch.tensor([tokenizer.encode_ordinary("Once upon a time")])'
        decode = "print(tokenizer.decode(ids.tolist()))"
    code = [
        *imports,
        "from simple_hierarchical_transformer import HierarchicalTransformer\n",
        f"model = HierarchicalTransformer.from_pretrained({quoted(location)})",
        encode,
        "ids = model.generate(prompt, 100)[0]",
        decode,
    ]
    return "\n".join([f'```bash\npip install "{LIBRARY}[hub]"\n```\n', "```python", *code, "```"])


def marked(card: str) -> str:
    return f"{card}<!-- made by save_pretrained, which replaces it as long as it is unchanged: {digest(card)} -->\n"


def digest(card: str) -> str:
    return hashlib.sha256(card.encode()).hexdigest()


def write_card(folder: Path, card: str) -> None:
    """Replace the card in a model's folder, unless it is somebody's own; see `is_ours`.

    Raises:
        OSError: if it can't be written to; what stood there before still stands.
    """
    if is_ours(folder / CARD_FILE):
        write_atomically({folder / CARD_FILE: card.encode()})


def is_ours(path: Path) -> bool:
    """Whether a card may be written there: there is none, or one that was made here and that nobody has changed."""
    try:
        card = path.read_bytes().decode().replace("\r\n", "\n")  # a checkout on Windows changes nothing
    except FileNotFoundError:
        return True
    except (OSError, UnicodeDecodeError):
        return False
    *_, last = card.splitlines(keepends=True) or [""]
    mark = MARK.fullmatch(last)
    return mark is not None and mark["sha256"] == digest(card.removesuffix(last))
