"""The settings that gRPC needs before it is imported, and the handling of its errors.

The packages that use gRPC import this module before ``grpc`` itself; this module imports nothing of it.

Source: contract C15.
"""

from __future__ import annotations

import os
import sys

from datasync.errors import UnsupportedError

# By default gRPC's own fork handlers are half enabled: each fork writes a line to stderr, and one child in some hundred
# crashes when it frees inherited objects. gRPC reads the variable at import; a value set by the application stays.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def check_grpc() -> None:
    """Check that gRPC would not hang, which it does in a process that gevent has patched without notifying gRPC.

    Raises:
      UnsupportedError: It would hang; the message names the function to call.
    """
    monkey = sys.modules.get("gevent.monkey")
    core = sys.modules.get("grpc._cython.cygrpc")
    if monkey is not None and monkey.is_module_patched("threading") and not getattr(core, "g_gevent_activated", True):
        raise UnsupportedError(
            "gRPC would block forever in this process, which gevent has patched:"
            " call grpc.experimental.gevent.init_gevent() after monkey.patch_all()"
        )


def forget_traceback(error: BaseException) -> None:
    """Break the reference cycle of *error*, a ``grpc.RpcError`` that is the call itself, so that it is freed at once.

    Its traceback refers to frames that refer to the call. A call that is collected at interpreter exit waits for a
    lock, which a gRPC thread that has ended may still hold.
    """
    error.__traceback__ = error.__context__ = None
