"""The server behind the page: the standard library's, bound to this machine, without access to any file.

GET /          the page
GET /model     what the model is, as JSON
POST /write    a text: JSON in; JSON lines out, one per piece, as it is written
"""

from __future__ import annotations

import json
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..model import HierarchicalTransformer
from ..text.tokenizer import TextTokenizer, Tokenizer, load_fitting
from ..validation import whole
from .writer import LONGEST_PROMPT, LONGEST_TEXT, Wish, written

HOST = "127.0.0.1"
LONGEST_REQUEST = 1 << 17  # bytes
MOST_PASSED_OVER = 1 << 26
SECONDS = 30  # without a sign of the other side, after which a connection is given up
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; connect-src 'self'; img-src data:; "
    "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


class Server(ThreadingHTTPServer):
    """Serves one model; one text is written at a time, others wait."""

    daemon_threads = True

    def __init__(self, port: int, model: HierarchicalTransformer, tokenizer: TextTokenizer, name: str) -> None:
        super().__init__((HOST, port), Handler)
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.writing = threading.Lock()
        self.page = files(__package__).joinpath("page.html").read_bytes()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    @property
    def hosts(self) -> set[str]:
        """What a browser on this machine calls this server; a page from elsewhere has another name."""
        port = self.server_address[1]
        names = {f"{HOST}:{port}", f"localhost:{port}"}
        return names | ({HOST, "localhost"} if port == 80 else set())  # which browsers leave out

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Whoever reads may leave at any time, and nobody needs a traceback of that."""
        if not isinstance(sys.exception(), (ConnectionError, TimeoutError)):
            super().handle_error(request, client_address)


def make_server(
    model: HierarchicalTransformer,
    tokenizer: str | Path | Tokenizer | TextTokenizer = "bytes",
    *,
    port: int = 0,
    name: str = "model",
) -> Server:
    """A server for the page of a model; `server.serve_forever()` serves it at `server.url`.

    Args:
        model: a trained model, on its device.
        tokenizer: that it was trained with: "bytes", a `tokenizers` JSON file, the name of a tiktoken encoding, or an
            object with `encode`, `decode` and `vocab_size`.
        port: of this machine; 0 takes one that is free.
        name: of the model, as the page shows it.

    Raises:
        TypeError, ValueError: for a port that isn't one, and a tokenizer that isn't the model's.
        OSError: for a port that is taken, and a tokenizer that can't be had.
    """
    port, known = whole("port", port, least=0, most=65535), load_fitting(tokenizer, model.num_tokens)
    try:
        return Server(port, model, known, name)
    except OSError as error:
        raise OSError(
            f"port {port} can't be had ({error.strerror}): choose another, or 0 for one that is free"
        ) from error


class Handler(BaseHTTPRequestHandler):
    server: Server
    timeout = SECONDS
    server_version = "hierarchical-transformer"
    sys_version = ""

    def do_GET(self) -> None:
        if not self.is_from_here():
            return
        if self.path == "/":
            self.answer(HTTPStatus.OK, "text/html; charset=utf-8", self.server.page)
        elif self.path == "/model":
            self.answer_json(HTTPStatus.OK, self.about())
        else:
            self.answer_json(HTTPStatus.NOT_FOUND, {"error": f"nothing is at {self.path!r}: ask for /"})

    def do_POST(self) -> None:
        if not self.is_from_here():
            return
        if self.path != "/write":
            self.answer_json(HTTPStatus.NOT_FOUND, {"error": f"nothing is at {self.path!r}: post to /write"})
            return
        try:
            wish = Wish.of(self.received(), self.server.model)
        except (TypeError, ValueError) as error:
            self.answer_json(HTTPStatus.BAD_REQUEST, {"error": str(error)})
            return
        self.write(wish)

    def is_from_here(self) -> bool:
        """Whether the browser asked for this machine by its own name, and not for a name that someone points to it."""
        origin = self.headers.get("Origin")
        is_ours = self.headers.get("Host") in self.server.hosts
        if is_ours and (origin is None or origin.removeprefix("http://") in self.server.hosts):
            return True
        self.answer_json(
            HTTPStatus.FORBIDDEN, {"error": f"this server is for this machine alone: open {self.server.url}"}
        )
        return False

    def received(self) -> Any:
        length = self.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() and len(length) <= 9 else 0
        if not 0 < size <= LONGEST_REQUEST:
            self.pass_over(size)
            raise ValueError(
                f"the request must have 1 to {LONGEST_REQUEST:,} bytes, got {length or 'none'}: shorten it"
            )
        try:
            return json.loads(self.rfile.read(size))
        except (ValueError, RecursionError) as error:
            raise ValueError('the request isn\'t JSON: send an object such as {"prompt": "def "}') from error

    def pass_over(self, length: int) -> None:
        """Read what isn't wanted, up to a limit: whoever still sends doesn't hear an answer."""
        for _ in range(min(length, MOST_PASSED_OVER) // LONGEST_REQUEST + 1):
            if not self.rfile.read(min(length, LONGEST_REQUEST)):
                break
            length = max(length - LONGEST_REQUEST, 0)

    def write(self, wish: Wish) -> None:
        server = self.server
        with server.writing:
            self.head(HTTPStatus.OK, "application/x-ndjson")
            try:
                for piece in written(server.model, server.tokenizer, wish):
                    self.send_line(piece)
                self.send_line({"done": True})
            except (ConnectionError, TimeoutError):
                raise  # the reader has left, and nothing more is computed
            except Exception as error:  # whatever it is, the page must not take the text for whole
                self.send_line({"error": str(error) or type(error).__name__})

    def send_line(self, content: Any) -> None:
        self.wfile.write(json.dumps(content).encode() + b"\n")
        self.wfile.flush()

    def about(self) -> dict[str, Any]:
        model = self.server.model
        return {
            "name": self.server.name,
            "parameters": model.num_parameters().total,
            "longest_prompt": LONGEST_PROMPT,
            "longest_text": LONGEST_TEXT,
            "streams": [
                {
                    "factor": s.compress_factor,
                    "stride": s.stride,
                    "window": s.window_size,
                    "predicts": s is model.config.predict_stream,
                }
                for s in model.config.streams
            ],
        }

    def answer_json(self, status: HTTPStatus, content: Any) -> None:
        self.answer(status, "application/json", json.dumps(content).encode())

    def answer(self, status: HTTPStatus, kind: str, content: bytes) -> None:
        self.head(status, kind, len(content))
        self.wfile.write(content)

    def head(self, status: HTTPStatus, kind: str, length: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.send_header("Content-Security-Policy", POLICY)
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cache-Control", "no-store")
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """The terminal is the user's, and holds the address of the page."""
