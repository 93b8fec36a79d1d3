"""A ConfigMap as it is mounted into a container: a folder of links, whose version is swapped by one rename."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path


class ConfigMap:
    """Writes versions as the kubelet does: a new folder, then ``..data`` is renamed over, then the old one goes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._version = 0
        path.mkdir()

    def swap(self, files: Mapping[str, str]) -> None:
        """Replace all files by *files*."""
        self._version += 1
        version = self.path / f"..2026_{self._version}"
        version.mkdir()
        for name, text in files.items():
            (version / name).write_text(text)
        data, new = self.path / "..data", self.path / "..data_tmp"
        old = os.readlink(data) if data.is_symlink() else ""
        new.symlink_to(version.name)
        new.rename(data)
        for name in files:
            if not (self.path / name).is_symlink():
                (self.path / name).symlink_to(f"..data/{name}")
        for link in self.path.iterdir():
            if not link.name.startswith("..") and link.name not in files:
                link.unlink()
        if old:
            shutil.rmtree(self.path / old)
