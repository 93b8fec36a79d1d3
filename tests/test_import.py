"""The cost of ``import datasync``: no thread, only protobuf, nothing large (C15)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

#: Packages that need no extra.
CORE = [
    "datasync",
    "datasync.codecs",
    "datasync.syncbase",
    "datasync.resync",
    "datasync.keyval",
    "datasync.kvdbsync.local",
]


def python(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "name", [*CORE, "datasync.kvdbsync", "datasync.keyval.memory", "datasync.keyval.sqlite", "datasync.grpcsync"]
)
def test_c15_importing_starts_no_thread(name: str) -> None:
    assert python(f"import {name}, threading; print(threading.active_count())") == "1"


@pytest.mark.parametrize("name", [*CORE, "datasync.kvdbsync"])
def test_importing_needs_nothing_but_protobuf(name: str) -> None:
    # given an interpreter in which every other third-party package is out of reach
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in sys.stdlib_module_names | {{"datasync", "google", "sitecustomize", "usercustomize"}}:
            raise ImportError(f"{{name}} is out of reach")
sys.meta_path.insert(0, Refuse())
import {name}
"""
    # when the module is imported / then nothing is missing
    python(program)


def test_importing_loads_nothing_large() -> None:
    # given what takes long to import, and is for those who use it
    large = {"asyncio", "email", "grpc", "http", "multiprocessing", "select", "socket", "sqlite3", "ssl"}
    large |= {"subprocess", "tempfile", "unittest", "urllib.request", "yaml", "zipfile", "google.protobuf.json_format"}
    large |= {"orjson"}
    # when
    loaded = set(python("import datasync, sys; print(*sys.modules)").split())
    # then
    assert loaded & large == set()
    assert len([name for name in loaded if name.startswith("datasync")]) <= 20


def test_c20_importing_open_view_loads_nothing_that_a_view_of_json_values_does_not_need() -> None:
    # given what takes long to import, and the part of the standard library and of protobuf that cannot be spared
    heavy = {"ast", "calendar", "dataclasses", "datetime", "decimal", "difflib", "inspect", "locale", "pickle"}
    heavy |= {"asyncio", "base64", "http", "random", "sqlite3", "struct", "urllib.parse", "yaml", "msgspec", "pydantic"}
    heavy |= {"google.protobuf.descriptor", "google.protobuf.message_factory", "google.protobuf.text_format"}
    heavy |= {f"datasync.{name}" for name in ("aggregator", "keyval", "kvdbsync", "options", "serializer", "syncbase")}
    program = """
import concurrent.futures, contextvars, json, logging, queue, sys, threading, typing
import google.protobuf.message
before = set(sys.modules)
from datasync import open_view
print(*sorted(set(sys.modules) - before))
"""
    # when
    loaded = set(python(program).split())
    # then
    assert loaded & heavy == set()
    assert len([name for name in loaded if name.startswith("datasync")]) <= 35


def test_the_logger_is_silent_until_somebody_listens() -> None:
    assert python("import datasync, logging; logging.getLogger('datasync.x').error('x')") == ""


def test_every_exported_name_is_there() -> None:
    import datasync

    assert [name for name in datasync.__all__ if not hasattr(datasync, name)] == []
    assert len(set(datasync.__all__)) == len(datasync.__all__)


def test_the_root_loads_connect_and_plugin_on_first_use() -> None:
    # given the root package alone / then neither the stores nor the transport over them are loaded
    program = """
import sys, datasync
heavy = {"datasync.keyval.urls", "datasync.kvdbsync.plugin", "datasync.codecs", "msgspec", "pydantic", "yaml"}
assert not heavy & set(sys.modules)
assert {"connect", "Plugin", "codecs"} <= set(dir(datasync))
assert not heavy & set(sys.modules)
from datasync import Plugin, connect
import datasync.keyval, datasync.kvdbsync
assert connect is datasync.keyval.connect and Plugin is datasync.kvdbsync.Plugin
assert vars(datasync)["connect"] is connect
assert datasync.codecs.json is sys.modules["datasync.codecs"].json
assert not {"msgspec", "pydantic", "yaml"} & set(sys.modules)
try:
    datasync.conect
except AttributeError as error:
    print(error)
"""
    # when they are asked for / then they are the ones of their packages, and a misspelt name is an error as usual
    assert python(program) == "module 'datasync' has no attribute 'conect'"
