"""The page's server: what it writes is the model's, and what it refuses, it refuses with a reason."""

from __future__ import annotations

import http.client
import json
import math
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from simple_hierarchical_transformer import HierarchicalTransformer
from simple_hierarchical_transformer.demo import make_server
from simple_hierarchical_transformer.demo.server import LONGEST_REQUEST, Server
from simple_hierarchical_transformer.demo.writer import Wish, written
from simple_hierarchical_transformer.text.printing import printable
from simple_hierarchical_transformer.text.tokenizer import BYTES

WISH = {"prompt": "def größe", "length": 40, "temperature": 1.0, "top_p": 1.0, "seed": 3}


class Words:
    """A tokenizer of one's own, with more ids than the model knows."""

    vocab_size = 300

    def encode(self, text: str) -> list[int]:
        return [len(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join("x" * index for index in ids)


@pytest.fixture(scope="module")
def model() -> HierarchicalTransformer:
    torch.manual_seed(0)
    built = HierarchicalTransformer(
        num_tokens=256, dim=16, depth=2, heads=2, dim_head=8, seq_len=32, hierarchies=(1, 4),
        hierarchical_stride=(1, 4), window_sizes=(4, None),
    )  # fmt: skip
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return built.eval()


@pytest.fixture(scope="module")
def server(model: HierarchicalTransformer) -> Iterator[Server]:
    with make_server(model, BYTES, name="small <model>") as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


def ask(server: Server, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    try:
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def lines(server: Server, wish: dict[str, Any]) -> list[dict[str, Any]]:
    status, content = ask(server, "POST", "/write", json.dumps(wish).encode())
    assert status == 200, content
    return [json.loads(line) for line in content.splitlines()]


def refusal(server: Server, body: bytes) -> str:
    status, content = ask(server, "POST", "/write", body)
    assert status == 400, content
    return json.loads(content)["error"]


def test_the_text_is_what_generate_writes(model: HierarchicalTransformer, server: Server) -> None:
    *pieces, done = lines(server, WISH)
    assert done == {"done": True}
    prompt = torch.tensor([list(WISH["prompt"].encode())])
    generator = torch.Generator().manual_seed(WISH["seed"])
    ids = model.generate(prompt, WISH["length"], top_p=1.0, generator=generator)
    whole = bytes(prompt[0].tolist() + ids[0].tolist())
    assert "".join(piece["text"] for piece in pieces) == printable(whole)
    assert "".join(piece["text"] for piece in pieces if piece["prompt"]).startswith("def größ")


@pytest.mark.parametrize("without", [[], [4]])
def test_the_bits_are_those_of_the_whole_sequence(
    model: HierarchicalTransformer, server: Server, without: list[int]
) -> None:
    wish = WISH | {"prompt": "def f", "length": 20, "temperature": 0, "without": without}
    *pieces, _ = lines(server, wish)
    ids = torch.tensor([list(b"def f")])
    with torch.no_grad():
        for _ in range(20):
            logits = model(ids, ablate_hierarchical_merge=without or False)
            ids = torch.cat((ids, logits[:, -1:].argmax(dim=-1)), dim=1)
        nats = logits[0].log_softmax(dim=-1).gather(-1, ids[0, 1:, None]).sum().item()
    assert "".join(piece["text"] for piece in pieces) == printable(bytes(ids[0].tolist()))
    assert pieces[0]["bits"] is None
    assert sum(piece["bits"] for piece in pieces[1:]) == pytest.approx(-nats / math.log(2), abs=0.02)


def test_prompts_longer_than_the_model_reads_at_once_are_taken_in_parts(model: HierarchicalTransformer) -> None:
    wish = Wish.of({"prompt": "abcdefgh" * 20, "length": 3}, model)
    pieces = list(written(model, BYTES, wish))
    assert sum(piece["bits"] is None for piece in pieces) == 1
    assert "".join(piece["text"] for piece in pieces if piece["prompt"]) == "abcdefgh" * 20


def test_it_tells_what_the_model_is(server: Server) -> None:
    status, content = ask(server, "GET", "/model")
    about = json.loads(content)
    assert status == 200 and about["name"] == "small <model>"
    assert [(s["factor"], s["predicts"]) for s in about["streams"]] == [(1, True), (4, False)]
    status, content = ask(server, "GET", "/")
    assert status == 200 and b"<textarea" in content


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "1 to 131,072 bytes, got 0"),
        (b"no json", "isn't JSON"),
        (b"[" * 100_000, "isn't JSON"),
        (b"[]", "must be an object with prompt, length"),
        (b"{}", "prompt must be text, got None"),
        (b'{"prompt": ""}', "prompt is empty"),
        (json.dumps({"prompt": "a" * 20_001}).encode(), "at most 20,000 characters, got 20,001"),
        (b'{"prompt": "a", "length": 1e9}', "length must be a whole number"),
        (b'{"prompt": "a", "length": 5000}', "length must be at most 4000, got 5000"),
        (b'{"prompt": "a", "temperature": -1}', "temperature must be a finite number"),
        (b'{"prompt": "a", "top_p": 2}', "top_p must be above 0 and at most 1, got 2"),
        (b'{"prompt": "a", "seed": "x"}', "seed must be a whole number, got 'x'"),
        (b'{"prompt": "a", "without": [1]}', "without must be a list of compress factors from [4], got [1]"),
        (b'{"prompt": "a", "file": "/etc/passwd"}', "'file' is no field of a request"),
    ],
)
def test_bad_requests_are_told_what_is_wrong(server: Server, body: bytes, message: str) -> None:
    assert message in refusal(server, body)


def test_a_request_that_is_too_large_is_told(server: Server) -> None:
    status, content = ask(server, "POST", "/write", b" " * (LONGEST_REQUEST * 5 + 3))
    assert status == 400 and b"got 655363: shorten it" in content


@pytest.mark.parametrize("path", ["/etc/passwd", "/../pyproject.toml", "/page.html"])
def test_no_file_is_served(server: Server, path: str) -> None:
    assert ask(server, "GET", path)[0] == 404
    assert ask(server, "POST", path, b"{}")[0] == 404


@pytest.mark.parametrize("headers", [{"Host": "evil.example"}, {"Origin": "http://evil.example"}])
def test_pages_from_elsewhere_are_refused(server: Server, headers: dict[str, str]) -> None:
    for method, path in (("GET", "/"), ("GET", "/model"), ("POST", "/write")):
        assert ask(server, method, path, b"{}", **headers)[0] == 403


def test_only_this_machine_is_listened_to(server: Server) -> None:
    assert server.server_address[0] == "127.0.0.1"


def test_a_reader_who_leaves_stops_the_writing(server: Server, capfd: pytest.CaptureFixture[str]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.server_address[1], timeout=60)
    connection.request("POST", "/write", json.dumps(WISH | {"length": 4000}))
    answer = connection.getresponse()
    answer.readline()
    answer.close()
    connection.close()
    *_, done = lines(server, WISH)  # which waits for the other to end
    assert done == {"done": True}
    assert "Traceback" not in capfd.readouterr().err


def test_a_port_that_is_taken_is_told(model: HierarchicalTransformer, server: Server) -> None:
    port = server.server_address[1]
    with pytest.raises(OSError, match=f"port {port} can't be had .*: choose another, or 0"):
        make_server(model, port=port)


def test_a_tokenizer_of_another_vocabulary_is_refused(model: HierarchicalTransformer) -> None:
    with pytest.raises(ValueError, match="has 300 ids, but the model knows 256"):
        make_server(model, Words())


def test_what_fails_while_it_is_written_is_told(
    server: Server, monkeypatch: pytest.MonkeyPatch, model: HierarchicalTransformer
) -> None:
    def fail(*_: Any) -> Any:
        raise RuntimeError("out of memory")

    monkeypatch.setattr("simple_hierarchical_transformer.demo.writer.bits_of", fail)
    assert lines(server, WISH)[-1] == {"error": "out of memory"}


@pytest.mark.parametrize(("port", "error"), [(-1, ValueError), (65536, ValueError), ("80", TypeError)])
def test_ports_that_are_none_are_refused(model: HierarchicalTransformer, port: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match="port must be"):
        make_server(model, BYTES, port=port)
