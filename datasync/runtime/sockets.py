"""The sockets of this process: their number, and those of forked children. Not in ``threads``: few users load it.

On floor 0 because it concerns the process, not a protocol. Source: contract C15.
"""

from __future__ import annotations

import contextlib
import os
import socket
import ssl
import sys
import weakref
from typing import Any

if sys.platform != "win32":
    import resource

#: Descriptors that count as open where the system does not list them.
USUALLY_OPEN = 64

# Changed by threads that open sockets, and by a forked child, which has one thread.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_in_children(one: socket.socket) -> None:
    """Close the copies of *one* in forked children.

    Otherwise a port stays in use and a connection open until the last child has ended, whatever the owner does.
    """
    _sockets.add(one)


def connection_limit(wanted: int) -> int:
    """Return how many connections a server may hold at once: *wanted*, or a third of the descriptors that are free now.

    A third, so that two servers in one process leave the rest of the program as much again. At least 1.
    Threads: any; call it when the server starts.
    """
    if sys.platform == "win32":  # it has no such limit
        return wanted
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if allowed == resource.RLIM_INFINITY:
        return wanted
    return max(1, min(wanted, (allowed - _open_descriptors()) // 3))


def _open_descriptors() -> int:
    for folder in ("/proc/self/fd", "/dev/fd"):
        with contextlib.suppress(OSError):
            return len(os.listdir(folder))
    return USUALLY_OPEN


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
