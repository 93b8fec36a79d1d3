"""The sockets of this process in forked children. Separate from ``threads``, so that only users of sockets load them.

On floor 0 because it concerns the process, not a protocol. Source: contract C15.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import weakref
from typing import Any

# Changed by threads that open sockets, and by a forked child, which has one thread.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_in_children(one: socket.socket) -> None:
    """Close the copies of *one* in forked children.

    Otherwise a port stays in use and a connection open until the last child has ended, whatever the owner does.
    """
    _sockets.add(one)


def wrap_tls(context: ssl.SSLContext, one: socket.socket, **options: Any) -> ssl.SSLSocket:
    """Return ``context.wrap_socket(one, **options)``, and leave no socket open if that fails.

    The standard library takes the descriptor over first. If the peer resets the connection at that moment, it raises
    and forgets the new socket, which only the traceback still has.
    """
    try:
        return context.wrap_socket(one, **options)
    except OSError as error:
        trace = error.__traceback__
        while trace is not None:
            half = trace.tb_frame.f_locals.get("self")
            if isinstance(half, ssl.SSLSocket):
                half.close()
            trace = trace.tb_next
        raise


def _after_fork_in_child() -> None:
    for one in list(_sockets):
        # Not the method of a TLS socket, which would send: the connection belongs to the parent. And not close(), which
        # waits for the files made from the socket.
        descriptor = socket.socket.detach(one)
        if descriptor >= 0:
            with contextlib.suppress(OSError):
                os.close(descriptor)
    _sockets.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
