"""What gRPC has to be told before it is imported, and before anything of it is made.

Imported before ``grpc`` itself by the packages that stand on it; imports nothing of it. Here too: what those who make
calls have to do with its errors.

Source: contract C15.
"""

from __future__ import annotations

import os
import sys

from datasync.errors import UnsupportedError

# Its own handlers of a fork are half on unless told: each fork writes a line on stderr, and one child in some hundred
# crashes when it frees what it inherited. This is read when gRPC is imported; what the application has set stays.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def check_grpc() -> None:
    """Refuse what would hang: gRPC in a process that gevent has patched, unless gRPC was told.

    Raises:
      UnsupportedError: It says what to call.
    """
    monkey = sys.modules.get("gevent.monkey")
    core = sys.modules.get("grpc._cython.cygrpc")
    if monkey is not None and monkey.is_module_patched("threading") and not getattr(core, "g_gevent_activated", True):
        raise UnsupportedError(
            "gevent has patched this process, where gRPC would block for ever:"
            " call grpc.experimental.gevent.init_gevent() after monkey.patch_all()"
        )


def forget_traceback(error: BaseException) -> None:
    """Let *error*, a ``grpc.RpcError`` that is the call itself, be freed as soon as nobody has it.

    Its traceback leads to frames that have the call. What the collector finds at the end of the interpreter waits there
    for a lock, which a thread of grpc's may have taken with it.
    """
    error.__traceback__ = error.__context__ = None
