"""The metadata in ``setup.cfg``: extras belong to code that exists, and ``all`` is exactly their sum."""

from __future__ import annotations

import re
from configparser import ConfigParser
from pathlib import Path

from datasync.keyval import urls

ROOT = Path(__file__).resolve().parent.parent

#: Extras for working on the project itself.
TOOLING = {"test", "bench", "docs"}


def extras() -> dict[str, set[str]]:
    """Extra to its requirements."""
    settings = ConfigParser()
    settings.read(ROOT / "setup.cfg")
    return {name: set(text.split()) for name, text in settings["options.extras_require"].items()}


def test_every_extra_is_named_by_the_code_that_needs_it() -> None:
    # given the extras that an error message tells a user to install
    source = "".join(path.read_text() for path in (ROOT / "datasync").rglob("*.py"))
    named = set(re.findall(r'MissingExtraError\("(\w+)"', source))
    named |= {driver.extra for driver in urls.DRIVERS.values() if driver.extra}
    # then setup.cfg has these and no other
    assert extras().keys() - TOOLING - {"all"} == named


def test_the_extra_all_is_the_sum_of_the_others() -> None:
    parts = [requirements for name, requirements in extras().items() if name not in TOOLING | {"all"}]
    assert extras()["all"] == set().union(*parts)


def test_every_hint_to_install_names_the_distribution_and_an_extra_that_exists() -> None:
    # given every "pip install" of the distribution in the code and the pages
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "datasync").rglob("*.py")]
    hints = [
        hint
        for page in pages
        for hint in re.findall(r"pip install '?(datasync[\w-]*)(\[[\w,{}]+\])?", page.read_text())
    ]
    # then the name is the one on the package index, and the extras are there
    assert hints
    assert {name for name, _ in hints} == {"datasync-kv"}
    wanted = {extra for _, extra in hints for extra in extra.strip("[]").split(",") if extra and "{" not in extra}
    assert wanted <= extras().keys()
