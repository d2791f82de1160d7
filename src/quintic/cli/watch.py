"""quintic watch."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Sequence

from quintic.cli.options import Watch
from quintic.errors import counted
from quintic.watch.discover import check_folders
from quintic.watch.server import ADDRESS, open_server
from quintic.watch.watcher import Watcher


def run(command: Watch, _arguments: Sequence[str]) -> None:
    """Serve the page until Ctrl-C, which is its end."""
    check_folders(command.folders)
    watcher = Watcher(command.folders)
    watcher.discover()
    with open_server(watcher, command.port) as server:
        port = server.server_address[1]
        address = f"http://{ADDRESS}:{port}/"
        print(f"{counted(len(watcher.runs), 'run')}: {address} (Ctrl-C ends it)", flush=True)
        threading.Thread(target=watcher.watch, daemon=True).start()
        if command.browser:
            _open_browser(address, port)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print()


def _open_browser(address: str, port: int) -> None:
    """Open a browser, or say how to see the page where there is none."""
    # On a Linux without a screen, one that is found draws in the terminal, over what is there.
    screen = sys.platform != "linux" or {"DISPLAY", "WAYLAND_DISPLAY"} & os.environ.keys()
    try:
        opened = bool(screen) and webbrowser.open(address)
    except webbrowser.Error:
        opened = False
    if not opened:
        print(
            "there is no browser here: from another machine, ssh -L "
            f"{port}:{ADDRESS}:{port} to this one brings the page to the same address there",
            flush=True,
        )
