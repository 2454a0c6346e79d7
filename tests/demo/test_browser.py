"""The page in a real browser: it loads, writes, stops, switches streams off, and tells mistakes."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.demo.server import Server
from simple_hierarchical_transformer.visualize import plot_surprise

from .browser import CHROMIUM, Browser
from .test_demo import model, server  # noqa: F401

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium: apt-get install chromium")

TEXT = 'document.getElementById("text")'
WRITTEN = f"{TEXT}.textContent"
ERROR = 'document.getElementById("error").textContent'


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with Browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def opened(browser: Browser, server: Server) -> Browser:  # noqa: F811
    browser.open(server.url)
    browser.wait_for('!document.getElementById("write").disabled && document.title === "small <model>"')
    return browser


def fill(browser: Browser, **values: str) -> None:
    for name, value in values.items():
        browser.do(f"document.getElementById({name!r}).value = {value!r}")


def press(browser: Browser, name: str) -> None:
    browser.do(f"document.getElementById({name!r}).click()")


def write(browser: Browser, **values: str) -> str:
    fill(browser, **values)
    press(browser, "write")
    browser.wait_for('!document.getElementById("write").disabled')
    text: str = browser.do(WRITTEN)
    return text


def test_it_tells_the_model_and_its_streams(browser: Browser, server: Server) -> None:  # noqa: F811
    opened(browser, server)
    about = browser.do('document.getElementById("about").textContent')
    assert "factor 1; factor 4, stride 4" in about
    assert browser.do('[...document.querySelectorAll("[name=stream]")].map(b => b.value).join()') == "4"


def test_it_writes_and_colours_what_it_writes(browser: Browser, server: Server, tmp_path: Path) -> None:  # noqa: F811
    opened(browser, server)
    text = write(browser, prompt="def größe", length="30", top_p="1", seed="3")
    assert text.startswith("def größe") and len(text) > len("def größe")
    assert browser.do(f'{TEXT}.querySelectorAll(".prompt").length') == len("def größe")
    colours = browser.do(f'new Set([...{TEXT}.querySelectorAll("[data-bits]")].map(s => s.style.background)).size')
    assert colours > 3
    assert not browser.do(ERROR)
    assert browser.screenshot().startswith(b"\x89PNG")


def test_a_stream_that_is_switched_off_changes_the_text(browser: Browser, server: Server) -> None:  # noqa: F811
    opened(browser, server)
    whole = write(browser, prompt="def f", length="60", seed="1")
    again = write(browser)
    browser.do('document.querySelector("[name=stream]").click()')
    without = write(browser)
    assert whole == again
    assert whole != without


def test_a_mistake_is_told_and_can_be_mended(browser: Browser, server: Server) -> None:  # noqa: F811
    opened(browser, server)
    assert write(browser, prompt="") == ""
    assert browser.do(ERROR).startswith("prompt is empty")
    assert write(browser, prompt="a", length="100000") == ""
    assert browser.do(ERROR) == "length must be at most 4000, got 100000: lower it"
    assert write(browser, length="5").startswith("a")
    assert browser.do(ERROR) == ""


def test_a_text_can_be_stopped(browser: Browser, server: Server) -> None:  # noqa: F811
    opened(browser, server)
    fill(browser, prompt="def f", length="4000")
    press(browser, "write")
    browser.wait_for(f"{WRITTEN}.length > 20")
    press(browser, "stop")
    browser.wait_for('!document.getElementById("write").disabled')
    assert browser.do(f"{WRITTEN}.length") < 4000
    assert not browser.do(ERROR)


def test_an_emptied_field_is_told(browser: Browser, server: Server) -> None:  # noqa: F811
    opened(browser, server)
    assert write(browser, prompt="a", length="5", temperature="") == ""
    assert browser.do(ERROR).startswith("temperature")


def test_the_page_of_a_text_tells_and_colours(
    browser: Browser,
    model: HierarchicalTransformer,  # noqa: F811
    tmp_path: Path,
) -> None:
    path = tmp_path / "page.html"
    path.write_text(plot_surprise(model, "def f(x):\n    return x"), encoding="utf-8")
    browser.open(path.as_uri())
    browser.wait_for('document.querySelectorAll("[data-b]").length === 21')
    assert browser.do('[...document.querySelectorAll("button")].map(b => b.textContent).join("; ")') == (
        "surprise; what stream 4 gave; what all merges gave"
    )
    span = 'document.querySelectorAll("[data-b]")[5]'
    browser.do(f'{span}.dispatchEvent(new MouseEvent("mouseover", {{bubbles: true}}))')
    told = browser.do('document.getElementById("told").textContent')
    bits, gain, _ = map(float, browser.do(f"{span}.dataset.b").split())
    assert told.startswith(f'"x": {bits:.2f} bits, {"+" if gain >= 0 else "−"}{abs(gain):.2f} without stream 4')
    browser.do('document.querySelectorAll("button")[1].click()')
    red, _, blue = map(int, re.findall(r"\d+", browser.do(f"{span}.style.background")))
    assert (blue > red) == (gain > 0) or abs(gain) < 0.02  # blue where the stream helped


def test_markup_in_a_text_stays_text(browser: Browser, server: Server) -> None:  # noqa: F811
    opened(browser, server)
    text = write(browser, prompt="<img src=x onerror=document.title=1>", length="3")
    assert text.startswith("<img src=x")
    assert browser.do(f'{TEXT}.querySelectorAll("img").length') == 0
