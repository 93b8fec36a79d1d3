"""The halves of the package: the HTTP server, the application, and the client do not import one another."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import datasync.restsync

FOLDER = Path(datasync.restsync.__file__).parent


@pytest.mark.parametrize(
    ("half", "strangers"),
    [
        ("client", "app|httpd|serve"),
        ("app", "client|httpd|serve"),
        ("httpd", "app|client|encoding|keys|problems|response|serve"),
    ],
)
def test_a_half_of_the_package_imports_nothing_of_the_others(half: str, strangers: str) -> None:
    # given the modules of one half
    modules = list((FOLDER / half).glob("*.py"))
    assert modules
    # when their imports are read / then none is of a module that must stay unknown to them
    for path in modules:
        assert not re.search(rf"from datasync\.restsync\.({strangers})\b", path.read_text()), path.name
