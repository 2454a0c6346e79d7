"""Draws every figure of the README and of these pages again.

    python docs/figures.py                         # trains the README's model first: three minutes
    python docs/figures.py --model runs/default    # or takes one that is there

Screenshots need Chromium, and are left as they are where there is none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

ROOT = Path(__file__).parents[1]
FIGURES = ROOT / "docs" / "figures"
BENCHMARKS = ("decoding.py", "train_speed.py", "quality.py")
sys.path[:0] = [str(ROOT / "tests" / "demo")]

import stat  # noqa: E402
import textwrap  # noqa: E402

import torch  # noqa: E402
from browser import CHROMIUM, Browser  # noqa: E402

from simple_hierarchical_transformer import HierarchicalTransformer, cli, figures  # noqa: E402
from simple_hierarchical_transformer.demo import make_server  # noqa: E402
from simple_hierarchical_transformer.visualize import plot_architecture, plot_cost, plot_runs, plot_surprise  # noqa: E402

POSITION, PAGE_LENGTH = 400, 1600
# of a shape that shows on a page: the README's model has a factor of 16
SHOWN = {"dim": (128, 512), "depth": 6, "hierarchies": (1, 8), "hierarchical_stride": (1, 8), "window_sizes": (6, None)}


def draw_model(run: Path) -> None:
    """What the command draws, of the trained model."""
    for picture, options in {
        "receptive-field": ["--position", str(POSITION)],
        "streams": ["--text", stat.__file__, "--borders", "^def |^# "],
    }.items():
        command = ["visualize", picture, "--model", str(run), "--out", str(FIGURES / f"{picture}.svg"), *options]
        if cli.main(command):
            raise SystemExit(1)
    model = HierarchicalTransformer.from_pretrained(run / "model")
    text = Path(textwrap.__file__)
    page = plot_surprise(
        model, text.read_bytes()[:PAGE_LENGTH], title=f"What surprised the README's model in {text.name}"
    )
    figures.write(page, FIGURES / "surprise.html")
    figures.write(plot_runs([run], by="time"), FIGURES / "runs.svg")


def draw_shape() -> None:
    with torch.device("meta"):
        model = HierarchicalTransformer(num_tokens=256, **SHOWN)
    figures.write(plot_architecture(model), FIGURES / "architecture.svg")
    with torch.device("meta"):
        model = HierarchicalTransformer(num_tokens=256, **SHOWN | {"window_sizes": (64, None), "seq_len": 16_384})
    figures.write(plot_cost(model), FIGURES / "cost.svg")


def photograph(run: Path) -> None:
    """The page of a text, and the page to play with, as a browser shows them."""
    if CHROMIUM is None:
        print("there is no Chromium, so screenshots stay as they are")
        return
    model = HierarchicalTransformer.from_pretrained(run / "model")
    with tempfile.TemporaryDirectory() as profile, Browser(Path(profile)) as browser:
        browser.open((FIGURES / "surprise.html").as_uri())
        browser.wait_for('document.querySelectorAll("[data-b]").length > 100')
        browser.do(
            'document.querySelectorAll("[data-b]")[300].dispatchEvent(new MouseEvent("mouseover", {bubbles: true}))'
        )
        (FIGURES / "surprise.png").write_bytes(browser.screenshot())
        with make_server(model, name="runs/default") as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            browser.open(server.url)
            browser.wait_for('!document.getElementById("write").disabled')
            browser.do('document.getElementById("prompt").value = "def read_lines(path):\\n    "')
            browser.do('document.getElementById("write").click()')
            browser.wait_for('!document.getElementById("write").disabled')
            (FIGURES / "demo.png").write_bytes(browser.screenshot())
            server.shutdown()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, metavar="RUN", help="folder of a run; by default one is trained")
    parser.add_argument("--pictures-only", action="store_true", help="leave out the figures of benchmarks")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        run = options.model or Path(scratch, "run")
        if options.model is None and cli.main(["train", "--out", str(run)]):
            raise SystemExit(1)
        draw_shape()
        draw_model(run)
        photograph(run)
    for script in () if options.pictures_only else BENCHMARKS:
        subprocess.run([sys.executable, ROOT / "benchmarks" / script, "--draw-only"], check=True)


if __name__ == "__main__":
    main()
