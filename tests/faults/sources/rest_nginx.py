"""A REST server behind nginx, set up as it usually is: under a path, with buffering, decoding and merging paths.

Every request goes through it, those of the writer too. Its own answers come when the server is away. Keys have a double
slash, which this nginx would make one of.
"""

from __future__ import annotations

from pathlib import Path

from tests.faults.sources.rest import RestSource
from tests.faults.sources.source import Misfortune
from tests.support.nginx import Nginx

CONFIG = """
server {{
    listen 127.0.0.1:{{port}};
    client_max_body_size 64m;
    location /api/ {{
        proxy_pass http://127.0.0.1:{port}/;
        proxy_buffering on;
        proxy_http_version 1.1;
        proxy_next_upstream off;
    }}
}}
"""


class RestNginxSource(RestSource):
    """A REST source whose requests go through nginx."""

    prefix = "service//"
    path = "/api"

    def in_front(self, folder: Path, port: int) -> int:
        self._nginx = Nginx(folder / "nginx", CONFIG.format(port=port)).start()
        return self._nginx.port

    def misfortunes(self) -> dict[str, Misfortune]:
        return super().misfortunes() | {"nginx-kill9": self._kill_nginx, "nginx-restart": self._restart_nginx}

    def close(self) -> None:
        super().close()
        self._nginx.stop()

    def _kill_nginx(self) -> None:
        self._nginx.kill()
        self.faults.healed.wait(self.chance.uniform(0, 0.1))
        self._nginx.start()

    def _restart_nginx(self) -> None:
        self._nginx.stop()
        self._nginx.start()
