"""The options of the file store: from a URL, from arguments, or from a ``filedb.conf`` of a Go agent.

Source: cn-infra ``db/keyval/filedb/plugin.go``; contract C16.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from datasync.codecs.yaml_text import YamlCodec
from datasync.errors import DecodeError, InvalidArgumentError
from datasync.keyval.embedded import check_setting
from datasync.runtime.files import read_file

LAYOUTS = ("filedb", "tree")


@dataclass(frozen=True, slots=True)
class FileConfig:
    """The options of a file store.

    Args:
      configuration_paths: Folders, or files of the layout ``filedb``, in order: of a key in several files the first
        counts.
      status_path: A file that ``put`` writes to, as in Go. It is not part of the store.
      layout: ``filedb``: each file is a list of keys and values; ``tree``: each file is a value, its path the key.
      writable: True if ``put`` and ``delete`` change the file *write_file*.
      write_file: The name of the one file that a writable store writes, in the first folder.
      poll_interval: Seconds between two looks at all files without a hint; more for thousands of files, so that idle
        looks take no more than 1 % of a core.
      hints: False where inotify tells nothing, as in network file systems.
      grace: Seconds after which a vanished file counts as deleted.
      max_bytes: Bytes of a file; a larger one is not read.
      lock_timeout: Seconds to wait for another process that writes.
    """

    configuration_paths: tuple[str, ...] = ()
    status_path: str = ""
    layout: str = "filedb"
    writable: bool = False
    write_file: str = "datasync.json"
    poll_interval: float = 2.0
    hints: bool = True
    grace: float = 1.0
    max_bytes: int = 64 * 1024 * 1024
    lock_timeout: float = 5.0

    def __post_init__(self) -> None:
        for name in ("poll_interval", "max_bytes"):
            check_setting(name, getattr(self, name))
        for name in ("grace", "lock_timeout"):
            check_setting(name, getattr(self, name), zero=True)
        for name in ("writable", "hints"):
            if not isinstance(getattr(self, name), bool):
                raise InvalidArgumentError(f"the option {name} of file:// must be true or false")
        if not self.configuration_paths:
            raise InvalidArgumentError("a file store needs a folder: file:///absolute/path or file:relative/path")
        for path in (*self.configuration_paths, self.status_path or "."):
            if not isinstance(path, str) or not path or "\0" in path:
                raise InvalidArgumentError("a path of a file store must be a non-empty string without NUL")
        if self.layout not in LAYOUTS:
            raise InvalidArgumentError(f"the option layout of file:// must be one of {', '.join(LAYOUTS)}")
        if self.writable and self.layout != "filedb":
            raise InvalidArgumentError("only the layout filedb can be writable: its one file makes a transaction whole")
        if self.writable and self.status_path:
            raise InvalidArgumentError("a file store is writable or has a status_path, not both")
        name = self.write_file
        if not isinstance(name, str) or os.path.basename(name) != name or not name.endswith(".json") or name[0] in ".#":
            raise InvalidArgumentError("the option write_file of file:// must be a name that ends in .json")


def read_options(options: Mapping[str, Any], paths: Iterable[str | os.PathLike[str]] = ()) -> FileConfig:
    """Return the configuration for *options*, whose names may have dashes or underscores, and *paths* before theirs.

    ``config_file`` names a JSON or YAML file for the options that are not given otherwise.

    Raises:
      InvalidArgumentError: An option is unknown or invalid, or the file cannot be read.
    """
    given = {str(name).replace("-", "_"): value for name, value in options.items() if value is not None}
    path = given.pop("config_file", None)
    if path is not None:
        given = {**_load(str(path)), **given}
    known = {one.name for one in fields(FileConfig)}
    for name in given:
        if name not in known:
            close = difflib.get_close_matches(name[:40], known, n=1)
            hint = f": did you mean {close[0].replace('_', '-')!r}?" if close else ""
            raise InvalidArgumentError(f"unknown option {name[:40]!r} of the file store{hint}")
    given["configuration_paths"] = _paths([*paths, *_listed(given.get("configuration_paths", ()))])
    return FileConfig(**given)


def _load(path: str) -> dict[str, Any]:
    try:
        content = YamlCodec(json_words=True).decode(read_file("the configuration of the file store", path))
    except DecodeError as error:
        raise InvalidArgumentError(f"the configuration of the file store {path} cannot be used: {error}") from None
    if content is not None and not isinstance(content, dict):
        raise InvalidArgumentError(f"the configuration of the file store {path} is not a mapping")
    return {str(name).replace("-", "_"): value for name, value in (content or {}).items()}


def _listed(given: object) -> Iterable[Any]:
    """Return the items of a list, or of a text with commas."""
    if isinstance(given, str):
        return [part.strip() for part in given.split(",")]
    return given if isinstance(given, (list, tuple)) else [given]


def _paths(listed: Iterable[Any]) -> tuple[str, ...]:
    texts = [os.fspath(one) if isinstance(one, os.PathLike) else one for one in listed]
    if not all(isinstance(one, str) for one in texts):
        raise InvalidArgumentError("the option configuration-paths of file:// must be a list of paths")
    return tuple(dict.fromkeys(str(one) for one in texts))


#: Options of a ``file:`` URL, and the types to which ``connect`` converts their text.
URL_OPTIONS: dict[str, str] = {one.name: str(one.type) for one in fields(FileConfig)} | {
    "config_file": "str",
    "configuration-paths": "str",
    "status-path": "str",
    "config-file": "str",
}
