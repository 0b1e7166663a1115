"""Where commands serve pages: whether an address is free, and a browser on it."""

import os
import socket
import sys
import webbrowser

from digits.errors import UserError


def check(host: str, port: int, *, named: str, advice: str) -> None:
    """Raise UserError if nothing can be served at this address, which the message calls `named`."""
    if not 1 <= port <= 65535:
        raise UserError(f"--port: must be 1 to 65535, not {port}")
    try:
        family, _, _, _, place = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        socket.create_server(place[:2], family=family).close()
    except OSError as error:
        why = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UserError(f"{named} cannot be used ({why}); {advice}") from None


def show(link: str) -> None:
    """Open a page in a browser, where there is a display."""
    if sys.platform in ("win32", "darwin") or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"):
        webbrowser.open(link)
