"""Fine control with a decoding state: a prefix that is computed once, and texts that stream into web responses.

    python examples/streaming_server.py runs/default --prefix-file instructions.txt
    curl -N 'http://127.0.0.1:8000/?prompt=def+&length=200'

Every request forks the state that has read the prefix, so a long prefix is read once, and copied per request. A
request whose reader leaves is stopped. It serves this machine alone; put a real server in front of it for more.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import torch

from simple_hierarchical_transformer import DecodingState, HierarchicalTransformer

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("model", type=Path, help="folder of a run, or of a model that was trained on bytes")
parser.add_argument("--prefix-file", type=Path, help="text that stands before every prompt")
parser.add_argument("--port", type=int, default=8000)
LONGEST = 10_000  # of a prompt, and of what is written


def load(folder: Path) -> HierarchicalTransformer:
    inner = folder / "model"  # a run keeps its model there
    return HierarchicalTransformer.from_pretrained(inner if inner.is_dir() else folder).eval()


def read_prefix(model: HierarchicalTransformer, prefix: bytes) -> DecodingState:
    """A state that has seen the prefix, taken in by parts, so that it may be longer than the model's `seq_len`."""
    state = model.init_state(batch_size=1)
    with torch.no_grad():
        for start in range(0, len(prefix), model.seq_len):
            part = torch.tensor([list(prefix[start : start + model.seq_len])])
            model(part, state=state, logits_to_keep=1)
    return state


def answer(model: HierarchicalTransformer, state: DecodingState, prompt: bytes, length: int) -> Iterator[bytes]:
    """The bytes that follow, one by one, in a state of their own."""
    ids = torch.tensor([list(prompt)])
    for token in model.stream(ids, length, temperature=0.8, top_p=0.95, state=state.clone()):
        yield bytes(token.tolist())


def make_server(model: HierarchicalTransformer, state: DecodingState, port: int) -> ThreadingHTTPServer:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            prompt = query.get("prompt", [""])[0].encode()
            length = query.get("length", ["100"])[0]
            if (
                not 0 < len(prompt) <= LONGEST
                or not (length.isdecimal() and len(length) < 6)
                or not 0 < int(length) <= LONGEST
            ):
                self.send_error(400, f"prompt and length must each be 1 to {LONGEST} long")
                return
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.end_headers()
            try:
                for piece in answer(model, state, prompt, int(length)):
                    self.wfile.write(piece)
                    self.wfile.flush()
            except ConnectionError:
                pass  # the reader has left, and nothing more is computed

        def log_message(self, format: str, *args: object) -> None:
            pass

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main() -> None:
    options = parser.parse_args()
    model = load(options.model)
    prefix = options.prefix_file.read_bytes() if options.prefix_file else b""
    state = read_prefix(model, prefix)
    with make_server(model, state, options.port) as server:
        print(f"http://127.0.0.1:{server.server_address[1]}/?prompt=def+ (Ctrl-C ends it)", flush=True)
        with suppress(KeyboardInterrupt):
            server.serve_forever()


if __name__ == "__main__":
    main()
