"""What becomes of sockets after a fork. Apart from ``threads``, so that only who opens sockets loads their module.

On floor 0 because it is about a process, not about a protocol. Source: contract C15.
"""

from __future__ import annotations

import os
import socket
import weakref

# Touched by whoever opens a socket, and by a child that has one thread.
_sockets: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def close_in_children(one: socket.socket) -> None:
    """Let forked children close their copy of *one*.

    Else a port stays taken and a connection open until the last child has ended, whatever its owner does.
    """
    _sockets.add(one)


def _after_fork_in_child() -> None:
    for one in list(_sockets):
        # Nothing of TLS, which would begin to talk: the connection is the parent's. And not close(), which waits for
        # files that were made of the socket.
        descriptor = socket.socket.detach(one)
        if descriptor >= 0:
            try:
                os.close(descriptor)
            except OSError:
                pass
    _sockets.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
