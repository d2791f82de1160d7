"""quintic watch."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from quintic.cli.interrupt import keeping_interrupts
from quintic.cli.options import Watch
from quintic.errors import counted
from quintic.watch.discover import count_runs
from quintic.watch.port import ADDRESS, open_port

ANSWER_WITHIN_S = 0.0005
"""A page's request waits so long for the thread that reads files, each time that it needs Python's
lock; Python's own 5 ms add up to more than reading takes."""


def run(command: Watch, _arguments: Sequence[str]) -> None:
    """Serve the page until Ctrl-C, which is its end."""
    folders = command.folders or (Path("runs"),)
    runs = count_runs(folders)
    with open_port(command.port) as listening:
        port = listening.getsockname()[1]
        address = f"http://{ADDRESS}:{port}/"
        print(f"{counted(runs, 'run')}: {address} (Ctrl-C ends it)", flush=True)
        try:
            if command.browser:
                _open_browser(address, port)
            # Only now, since this takes as long as all before: the browser loads meanwhile.
            with keeping_interrupts():
                from quintic.watch.server import PageServer
                from quintic.watch.watcher import Watcher
            watcher = Watcher(folders)
            sys.setswitchinterval(ANSWER_WITHIN_S)
            threading.Thread(target=watcher.watch, daemon=True).start()
            PageServer(listening, watcher).serve_forever()
        except KeyboardInterrupt:
            print()


def _open_browser(address: str, port: int) -> None:
    """Open a browser, or say how to see the page where there is none."""
    import webbrowser

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
