"""The port of the page, open before what answers on it is imported: a browser that connects
meanwhile waits in line."""

from __future__ import annotations

import errno
import socket

from quintic.errors import QuinticError, reason, way_out

ADDRESS = "127.0.0.1"
"""Of this machine alone."""
IN_LINE = 128
"""Connections that may wait: a browser opens six."""


def open_port(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine; 0 takes a free one.

    Raises `QuinticError` where the port cannot be had.
    """
    if not 0 <= port < 1 << 16:
        raise QuinticError(f"--port is {port}: it must be from 1 to 65535, or 0 for a free one")
    # Without SO_REUSEADDR, which on some systems lets a second watch in beside the first.
    listening = socket.socket()
    try:
        listening.bind((ADDRESS, port))
        listening.listen(IN_LINE)
    except OSError as error:
        listening.close()
        taken = error.errno == errno.EADDRINUSE
        way = "choose another --port, or leave it out for a free one"
        why = "is in use by another program" if taken else f"cannot be opened: {reason(error)}"
        raise QuinticError(f"port {port} {why}; {way if port else way_out(error)}") from error
    return listening
