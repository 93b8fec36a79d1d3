"""The helper that starts nginx."""

from __future__ import annotations

from http.client import HTTPConnection
from pathlib import Path

from tests.support.nginx import Nginx
from tests.support.proxy import reachable


def test_nginx_serves_what_it_is_told_and_is_gone_afterwards(tmp_path: Path) -> None:
    body = 'server { listen 127.0.0.1:{port}; location / { return 200 "here"; } }'
    with Nginx(tmp_path / "nginx", body) as nginx:
        for _ in range(2):
            connection = HTTPConnection(nginx.address, timeout=30)
            connection.request("GET", "/")
            assert connection.getresponse().read() == b"here"
            connection.close()
            nginx.stop()
            nginx.start()
    assert not reachable(nginx.port)
