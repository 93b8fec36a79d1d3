"""gRPC senders whose way to the agent leads through nginx: it ends streams that are quiet, restarts, and is killed."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from tests.faults.sources.grpc import GrpcSource
from tests.faults.sources.source import Misfortune
from tests.support.nginx import Nginx

#: Seconds without a message after which nginx ends a stream, so that none outlives a sender that is half-open for long.
QUIET = 3
_SERVER = """
server {{
    listen 127.0.0.1:{{port}} http2;
    client_max_body_size 0;
    location / {{
        grpc_pass grpc://127.0.0.1:{agent};
        grpc_connect_timeout 2s;
        grpc_read_timeout {quiet}s;
        grpc_send_timeout {quiet}s;
    }}
}}
"""


class GrpcNginxSource(GrpcSource):
    """The agent's server is plain; what senders connect to is nginx."""

    def __init__(self, chance: random.Random) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="datasync-grpc-nginx-", ignore_cleanup_errors=True)
        super().__init__(chance)

    def misfortunes(self) -> dict[str, Misfortune]:
        return {
            **super().misfortunes(),
            "nginx-restarts": lambda: self._restart_nginx(self._nginx.stop),
            "nginx-killed": lambda: self._restart_nginx(self._nginx.kill),
            "quiet": lambda: self._quiet(),
        }

    def close(self) -> None:
        super().close()
        if self._nginx.running:
            self._nginx.stop()
        self._folder.cleanup()

    def _entrance(self) -> int:
        body = _SERVER.format(agent=self._port, quiet=QUIET)
        self._nginx = Nginx(Path(self._folder.name), body).start()
        return self._nginx.port

    def _restart_nginx(self, end: Misfortune) -> None:
        end()
        self.faults.healed.wait(self.chance.uniform(0, 0.3))
        self._nginx.start()

    def _quiet(self) -> None:
        """Nothing comes through for as long as nginx waits for it."""
        self._proxy.freeze()
        self.faults.healed.wait(QUIET + self.chance.uniform(0, 0.5))
        self._proxy.heal()
