"""A server in a process of its own, with few descriptors, beside an application that needs some too.

Started as ``python -m tests.grpcsync.crowded DESCRIPTORS``; prints its port, and after each line of input a line with
the number of open descriptors, the memory that it ever held in MiB, and "well" if 20 files can be opened.
"""

from __future__ import annotations

import os
import resource
import sys
from contextlib import ExitStack

from datasync.grpcsync import serve
from datasync.grpcsync.server import server as server_module

#: The token of those who are no strangers.
TOKEN = "Zq9canary-crowd"


def main() -> None:
    allowed, idle = int(sys.argv[1]), float(sys.argv[2])
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, allowed))
    server_module.HANDSHAKE_TIMEOUT = server_module.MAX_IDLE = idle
    with serve("127.0.0.1:0", token=TOKEN) as server:
        _say(server.port)
        for _ in sys.stdin:
            _say(len(os.listdir("/proc/self/fd")), _held(), _application())


def _say(*words: object) -> None:
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


def _held() -> int:
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) // 1024 for line in status if line.startswith("VmHWM"))


def _application() -> str:
    try:
        with ExitStack() as opened:
            for _ in range(20):
                opened.enter_context(open(os.devnull, "rb"))
    except OSError as error:
        return str(error)
    return "well"


if __name__ == "__main__":
    main()
