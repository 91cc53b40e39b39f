"""A real HTTP server on this machine that speaks the embeddings API, and misbehaves on request."""

import base64
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np

WIDTH = 6


def true_vector(text: str) -> np.ndarray:
    """What the served model makes of a text: not of unit length."""
    seed = list(text.encode()) or [0]
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32) * 3


def as_base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def items_for(texts: Sequence[str]) -> list[dict[str, Any]]:
    return [
        {"index": place, "embedding": as_base64(true_vector(text))}
        for place, text in enumerate(texts)
    ]


class Handler(BaseHTTPRequestHandler):
    """Hands each request to the next planned step of its server, or answers it properly."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        server: Any = self.server
        headers = {name.lower(): value for name, value in self.headers.items()}
        server.requests.append((self.path, headers, body))
        step = server.steps.pop(0) if server.steps else answer(items_for)
        step(self, body["input"])

    def reply(self, status: int, content: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""


Step = Callable[[Handler, Sequence[str]], None]


def answer(make_items: Callable[[Sequence[str]], Any]) -> Step:
    """Answer with whatever `make_items` puts under `data`."""
    return lambda handler, texts: handler.reply(
        200, json.dumps({"data": make_items(texts)}).encode()
    )


def fail(status: int, message: object, **headers: str) -> Step:
    """Answer with an error in OpenAI's shape."""
    body = json.dumps({"error": {"message": message}}).encode()
    return lambda handler, texts: handler.reply(status, body, **headers)


def send(content: bytes, status: int = 200) -> Step:
    """Answer with raw bytes."""
    return lambda handler, texts: handler.reply(status, content)


def drop(handler: Handler, texts: Sequence[str]) -> None:
    """Close the connection without an answer."""
    handler.close_connection = True
    handler.connection.shutdown(2)


class EmbeddingServer(ThreadingHTTPServer):
    """Remembers its requests; `steps` are taken one per request before it behaves."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        self.steps: list[Step] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def handle_error(self, *arguments: Any) -> None:
        """Keep quiet about connections that were dropped on purpose."""


@contextmanager
def serving() -> Iterator[EmbeddingServer]:
    with EmbeddingServer() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()
