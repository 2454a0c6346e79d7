"""The README and the docs are true: code runs, the README's commands are what CI runs, its table is the signature.

HTML comments in a page, which readers don't see, say how a block is tested:

    <!-- continues -->                runs in the namespace of the block before it
    <!-- shrink: {"20000": "200"} --> these texts are replaced first, so that the block is small enough for a test
    <!-- run: {"20000": "200"} -->    a block of commands is run, these texts replaced

The folder in which a block runs holds `text.txt`.
"""

import ast
import inspect
import json
import os
import re
import shutil
import socket
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer

ROOT = Path(__file__).parent.parent
TEXT = b"".join(b"line %d of a text that says nothing new\n" % number for number in range(500))
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {path.relative_to(ROOT): path.read_text(encoding="utf-8") for path in sorted(ROOT.glob("docs/*.md"))}
PAGES[Path("README.md")] = README
ARGUMENTS = PAGES[Path("docs/arguments.md")]

COMMANDS = re.compile(r"^<!-- run: (?P<shrink>[^\n]*) -->\n```bash\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^(?P<comments>(?:<!-- [^\n]* -->\n)*)```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    line: int  # of the page at which its code starts
    code: str
    continues: bool


def shrunk(code: str, replacements: str) -> str:
    for old, new in json.loads(replacements).items():
        assert old in code, f"a page shrinks {old!r}, which its block doesn't hold:\n{code}"
        code = code.replace(old, new)
    return code


def read_blocks(text: str) -> list[Block]:
    blocks = []
    for match in BLOCK.finditer(text):
        code, comments = match["code"], match["comments"]
        for shrink in re.findall(r"<!-- shrink: (.*) -->", comments):
            code = shrunk(code, shrink)
        if not torch.cuda.is_available():
            code = code.replace(".cuda()", "")
        blocks.append(Block(text.count("\n", 0, match.start("code")) + 1, code, "<!-- continues -->" in comments))
    return blocks


def group_chapters(blocks: list[Block]) -> list[list[Block]]:
    """Blocks that continue each other, together."""
    chapters: list[list[Block]] = []
    for block in blocks:
        if block.continues:
            chapters[-1].append(block)
        else:
            chapters.append([block])
    return chapters


CHAPTERS = [(page, chapter) for page, text in PAGES.items() for chapter in group_chapters(read_blocks(text))]


def make_run(folder: Path) -> None:
    """What the README's first command leaves, as small as can be."""
    HierarchicalTransformer(
        num_tokens=256, dim=16, depth=2, heads=2, dim_head=8, seq_len=64, hierarchies=(1, 4),
        hierarchical_stride=(1, 4), window_sizes=(8, None),
    ).save_pretrained(folder / "model")  # fmt: skip
    records = [{"step": step, "train_bits_per_byte": 8 / step} for step in range(1, 9)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, records)))


def test_every_block_of_commands_is_run() -> None:
    run = sum(len(list(COMMANDS.finditer(text))) for text in PAGES.values())
    by_ci = README.count("<!-- command: ")
    assert run + by_ci == sum(text.count("```bash") for text in PAGES.values()) > by_ci == 2


def test_every_python_block_is_found() -> None:
    found = sum(len(chapter) for _, chapter in CHAPTERS)
    assert found == sum(text.count("```python") for text in PAGES.values()) > README.count("```python") > 0


@pytest.mark.parametrize(
    ("page", "chapter"), CHAPTERS, ids=lambda value: value.name if isinstance(value, Path) else f"line {value[0].line}"
)
def test_code_runs_offline(page: Path, chapter: list[Block], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> None:
        raise AssertionError(f"code of {page} opened a connection: {args}")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_bytes(TEXT)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        namespace: dict[str, object] = {"__name__": "page"}
        for block in chapter:
            lines_before = "\n" * (block.line - 1)  # so that a traceback shows the line of the page
            exec(compile(lines_before + block.code, ROOT / page, "exec"), namespace)


@pytest.mark.skipif(shutil.which("bash") is None, reason="they are for bash")
@pytest.mark.parametrize(
    ("page", "commands"),
    [(page, match) for page, text in PAGES.items() for match in COMMANDS.finditer(text)],
    ids=lambda value: value.name if isinstance(value, Path) else value["code"].split("--")[0].split("/")[-1].strip(),
)
def test_commands_run(page: Path, commands: re.Match[str], tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_bytes(TEXT)
    make_run(tmp_path / "runs" / "default")
    code = shrunk(commands["code"], commands["shrink"]).replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_the_readme_shows_of_training_is_short() -> None:
    for match in [*BLOCK.finditer(README), *COMMANDS.finditer(README)]:
        assert match["code"].count("\n") <= 40


def test_own_loop_is_under_twenty_lines() -> None:
    loop = read_blocks(README)[0].code
    assert "loss.backward()" in loop
    assert len([line for line in loop.splitlines() if line.strip()]) < 20


@pytest.mark.skipif(shutil.which("bash") is None, reason="the command that CI runs needs bash")
@pytest.mark.parametrize(("name", "last_step"), [("train", "hierarchical-transformer train"), ("test", "pytest")])
def test_command_is_one_line_that_ci_finds(name: str, last_step: str) -> None:
    found = subprocess.run(["bash", ROOT / ".ci/run", "command", name], capture_output=True, text=True, check=True)
    (command,) = found.stdout.splitlines()
    assert command.startswith("python3 -m venv .venv && ")
    assert command.endswith(last_step)  # so that CI can append options
    assert command in README.split("## In your own loop")[0]


def read_table(heading: str) -> dict[str, str]:
    """First column, without its backquotes, to the second."""
    section = ARGUMENTS.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*?) \| .+ \|$", section, re.MULTILINE))


def test_table_lists_exactly_the_constructor_arguments() -> None:
    parameters = list(inspect.signature(HierarchicalTransformer.__init__).parameters.values())[1:]
    table = read_table("Constructor")
    assert set(table) == {parameter.name for parameter in parameters}
    for parameter in parameters:
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY, parameter.name
        default = table[parameter.name]
        if parameter.default is inspect.Parameter.empty:
            assert default == "required", parameter.name
        else:
            stated = ast.literal_eval(default.strip("`"))
            assert (type(stated), stated) == (type(parameter.default), parameter.default), parameter.name


def test_forward_switches_are_named() -> None:
    section = ARGUMENTS.split("The switches of one `forward(ids, …)` are ")[1].split("\n\n")[0]
    named = set(re.findall(r"`(\w+)`", section))
    switches = list(inspect.signature(HierarchicalTransformer.forward).parameters)[2:]
    assert named == set(switches)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_files_it_links_to_exist(page: Path) -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", PAGES[page]) if "://" not in target]
    for target in targets:
        assert (ROOT / page.parent / target).exists(), target
        if page.parent == Path("docs") and target.endswith(".md"):  # or the site has no such page
            assert "/" not in target, target
    assert targets or page != Path("README.md")


def test_tables_are_what_the_benchmarks_have_measured() -> None:
    subprocess.run([sys.executable, ROOT / "benchmarks/tables.py", "--check"], check=True)
