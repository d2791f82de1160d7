"""A server for one page, on this machine alone, of the standard library.

It answers a handful of GETs for one user over loopback. Starlette with uvicorn, the alternative,
are eight packages to install for that. What they do better, thousands of connections at a time and
frames of HTTP, nothing here needs.

It only reads, and no request names a path: files of the page are those of a fixed list, runs go by
ids. A page of another site could have its own name resolve to 127.0.0.1 and read along (DNS
rebinding); its requests bear that name in `Host`, and are refused.
"""

from __future__ import annotations

import gzip
import json
import socket
import time
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from quintic.pages.fill import shared_part
from quintic.watch.answers import BadQueryError, curves, diagnostics, differences
from quintic.watch.port import ADDRESS
from quintic.watch.watcher import Watcher

QUIET_S = 15.0
"""After so long without news a comment is sent: it finds out whether anybody still listens."""
COMPRESSED_FROM_BYTES = 1_000

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

FILES = {
    "/": ("page.html", "text/html"),
    "/page.js": ("page.js", "text/javascript"),
    "/page.css": ("page.css", "text/css"),
    "/chart.js": ("chart.js", "text/javascript"),
    "/heatmap.js": ("heatmap.js", "text/javascript"),
    "/style.css": ("style.css", "text/css"),
}
"""File and kind of what the page consists of; those that all pages share are in quintic.pages."""


class PageServer(ThreadingHTTPServer):
    """A server of a page that shows what the watcher knows, on a socket that listens."""

    daemon_threads = True

    def __init__(self, listening: socket.socket, watcher: Watcher) -> None:
        address = listening.getsockname()
        super().__init__(address, partial(_Handler, watcher), bind_and_activate=False)
        self.socket.close()
        self.socket = listening

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a page that was closed while it was answered."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def __init__(self, watcher: Watcher, *arguments: Any) -> None:
        self.watcher = watcher
        super().__init__(*arguments)

    def do_GET(self) -> None:
        """Answer a request."""
        if self.headers.get("Host", "").lower() not in self._own_names():
            self._send_text(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"this page is at http://{ADDRESS}:{self._port}/ alone\n",
            )
            return
        address = urlsplit(self.path)
        query = dict(parse_qsl(address.query))
        runs = dict(self.watcher.runs)
        try:
            if address.path in FILES:
                name, kind = FILES[address.path]
                self._send(HTTPStatus.OK, _page_part(name), f"{kind}; charset=utf-8")
            elif address.path == "/events":
                self._stream()
            elif address.path == "/curves":
                self._send_json(curves(runs, query))
            elif address.path == "/differences":
                self._send_json(differences(runs, query))
            elif address.path == "/run" and query.get("id") in runs:
                self._send_json(runs[query["id"]].details())
            elif address.path == "/diagnostics" and query.get("id") in runs:
                self._send_json(diagnostics(runs[query["id"]]))
            else:
                self._send_text(HTTPStatus.NOT_FOUND, "there is no such page\n")
        except BadQueryError as error:
            self._send_text(HTTPStatus.BAD_REQUEST, f"not understood: {error}\n")

    @property
    def _port(self) -> int:
        port: int = self.server.server_address[1]  # type: ignore[assignment,index]
        return port

    def _own_names(self) -> set[str]:
        return {f"{name}:{self._port}" for name in (ADDRESS, "localhost", "[::1]")}

    def _stream(self) -> None:
        """Send what has changed as it changes (server-sent events), until nobody listens."""
        self._send_head(HTTPStatus.OK, "text/event-stream", {"Connection": "close"})
        version = 0
        while True:
            version, found = self.watcher.changes(version, QUIET_S)
            news = {"now": time.time(), "missing": [*self.watcher.missing()], "runs": found}
            self.wfile.write(b"data: %s\n\n" % _json(news) if found else b": quiet\n\n")

    def _send_json(self, value: Any) -> None:
        self._send(HTTPStatus.OK, _json(value), "application/json")

    def _send_text(self, status: HTTPStatus, text: str) -> None:
        self._send(status, text.encode(), "text/plain; charset=utf-8")

    def _send(self, status: HTTPStatus, body: bytes, kind: str) -> None:
        headers = {}
        accepted = self.headers.get("Accept-Encoding", "")
        if len(body) >= COMPRESSED_FROM_BYTES and "gzip" in accepted:
            body, headers = gzip.compress(body, 4), {"Content-Encoding": "gzip"}
        self._send_head(status, kind, {**headers, "Content-Length": str(len(body))})
        self.wfile.write(body)

    def _send_head(self, status: HTTPStatus, kind: str, more: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, **HEADERS, **more}.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, *arguments: Any) -> None:
        """Print nothing of a request."""


def _page_part(name: str) -> bytes:
    own = resources.files("quintic.watch").joinpath(name)
    return (own.read_text(encoding="utf-8") if own.is_file() else shared_part(name)).encode()


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
