"""nginx in front of a server: one process of the test's own, on loopback, ended by its process id."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from tests.conftest import absent
from tests.support.between import ProcessBetween
from tests.support.executables import system
from tests.support.proxy import free_port, reachable

#: Seconds that nginx may take to come up.
START_TIMEOUT = 30.0
#: One process that writes all its files below its own folder.
_CONFIG = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log warn;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/client_body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    {body}
}}
"""


class Nginx(ProcessBetween):
    """An nginx process. A context manager that stops it.

    Args:
      folder: For its configuration and its files; not shared.
      body: What stands in the ``http`` block. ``{port}`` in it is replaced by the port that ``port`` names, as in
        ``"server { listen 127.0.0.1:{port}; location / { proxy_pass http://127.0.0.1:8080; } }"``.
    """

    def __init__(self, folder: Path, body: str) -> None:
        program = system("nginx")
        if program is None:
            absent("nginx")
        self._program = program
        self._folder = folder
        self.port = free_port()
        self._body = body.replace("{port}", str(self.port))
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        """``host:port`` for clients."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """True from ``start`` until it is ended."""
        return self._process is not None

    @property
    def log(self) -> str:
        """Its error log."""
        path = self._folder / "error.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def start(self) -> Nginx:
        """Start it, on the same port as before, and return when it accepts connections."""
        self._folder.mkdir(parents=True, exist_ok=True)
        config = self._folder / "nginx.conf"
        config.write_text(_CONFIG.format(folder=self._folder, body=self._body))
        errors = str(self._folder / "error.log")
        self._process = subprocess.Popen(
            [str(self._program), "-p", str(self._folder), "-c", str(config), "-e", errors],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + START_TIMEOUT
        while not reachable(self.port):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self.kill()
                pytest.fail(f"nginx did not come up:\n{self.log[-2000:]}", pytrace=False)
            time.sleep(0.02)
        return self

    def __enter__(self) -> Nginx:
        return self.start() if self._process is None else self
