"""A web server for tests: serves bytes, with ranges, and fails on request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Server:
    """A server whose answers can break off; it records its requests.

    files: {path: content}. stops: {path: bytes after which the next answer breaks off}.
    """

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.tags: dict[str, str] = {}
        self.stops: dict[str, list[int]] = {}
        self.ranges = True
        self.requests: list[tuple[str, str, str | None]] = []  # (method, path, Range)
        self.url = ""

    def answer(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        """Answer a request as a file server would, or worse."""
        path, asked = handler.path, handler.headers["Range"]
        self.requests.append((handler.command, path, asked))
        content = self.files.get(path)
        if content is None:
            handler.send_error(404)
            return
        tag = self.tags.get(path, '"one"')
        unchanged = handler.headers["If-Range"] in (None, tag)
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and self.ranges and unchanged else 0
        if start and start >= len(content):
            handler.send_error(416)
            return
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.send_header("ETag", tag)
        handler.send_header("X-Repo-Commit", "0" * 40)  # as the hub does
        if start:
            handler.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        handler.end_headers()
        if body:
            stops = self.stops.get(path)
            handler.wfile.write(content[start : start + stops.pop(0)] if stops else content[start:])


@contextmanager
def running() -> Iterator[Server]:
    """Run a server on a free port of this machine."""
    server = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            server.answer(self, body=True)

        def do_HEAD(self) -> None:
            server.answer(self, body=False)

        def log_message(self, format: str, *args: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.url = f"http://127.0.0.1:{http.server_port}"
    threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
