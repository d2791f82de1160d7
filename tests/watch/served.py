"""A server of runs, and what it answers."""

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from quintic.watch.port import open_port
from quintic.watch.server import PageServer
from quintic.watch.watcher import Watcher


class Served:
    """A server of some runs, whose watcher looks when a test says so."""

    def __init__(self, root: Path) -> None:
        self.root, self.watcher = root, Watcher([root])
        self.look()
        self.server = PageServer(open_port(0), self.watcher)
        self.port = self.server.server_address[1]
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def look(self) -> None:
        while self.watcher.look():
            pass

    def get(self, path: str, host: str | None = None, **headers: str) -> http.client.HTTPResponse:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        host = f"127.0.0.1:{self.port}" if host is None else host
        connection.request("GET", path, headers={"Host": host, **headers})
        return connection.getresponse()

    def json(self, path: str) -> Any:
        answer = self.get(path)
        assert answer.status == 200
        return json.loads(answer.read())

    def id(self, name: str) -> str:
        return next(run.id for run in self.watcher.runs.values() if run.name == name)


@contextmanager
def serving(root: Path) -> Iterator[Served]:
    """Serve the runs in a folder until the end of the block."""
    found = Served(root)
    try:
        yield found
    finally:
        found.server.shutdown()
        found.server.server_close()
