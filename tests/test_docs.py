"""The pages are right: their Python runs, their samples equal the files, their links and names lead somewhere."""

from __future__ import annotations

import importlib
import itertools
import pkgutil
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

import datasync
from tests.support.command import complaint

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: A block of Python. A comment above it excuses one that is a sketch or needs a server, or names the file it is from.
BLOCK = re.compile(
    r"(?P<excuse><!-- not run: [^>]+-->\n+)?(?:<!-- from (?P<file>\S+) -->\n+)?^```python\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)
#: A block of any language that names the file it is from.
SAMPLE = re.compile(r"<!-- from (?P<file>\S+) -->\n+^```\w+\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
#: A call of our command in a block, after variables and a prompt.
CALL = re.compile(r"^(?:\$ )?(?:\w+=\S+ )*datasync (.*)$", re.MULTILINE)
#: Packages whose names are for users; the others have an empty reference.
INTERNAL = {
    "cli",
    "examples",
    "runtime",
    "app",
    "httpd",
    "client",
    "server",
    "view",
    "reconciler",
    "locks",
    "supervise",
}


def blocks(page: Path) -> list[str]:
    """The code of each block that is to be run, with the line numbers it has in the page."""
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        if not match["excuse"] and not match["file"]:
            above = text[: match.start("code")].count("\n")
            found.append("\n" * above + match["code"])
    return found


PAGES_WITH_CODE = [page for page in PAGES if blocks(page)]


@pytest.mark.parametrize("page", PAGES_WITH_CODE, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_python_of_a_page_runs_as_it_stands_there(page: Path, tmp_path: Path) -> None:
    # given the blocks of a page, each a continuation of the one before
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r}); names = {{'__name__': '__main__'}}\n"
    for code in blocks(page):
        program += f"exec(compile({code!r}, {page.name!r}, 'exec'), names)\n"
    # when they are run / then none raises, and the interpreter ends by itself
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program], cwd=tmp_path, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_sample_from_a_file_is_what_stands_in_the_file() -> None:
    # given the samples that name their file
    texts = [page.read_text() for page in PAGES]
    samples = [match for text in texts for match in SAMPLE.finditer(text)]
    assert len(samples) >= 5
    assert len(samples) == sum(text.count("<!-- from ") for text in texts)
    # then each is a part of it, word for word
    stale = [match["file"] for match in samples if match["code"] not in (ROOT / match["file"]).read_text()]
    assert stale == []


def test_every_call_of_the_command_in_a_block_is_one_that_it_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    # given the lines of shell of all pages, in some of which the URL is left out
    monkeypatch.setenv("DATASYNC_URL", "sqlite:app.db")
    shell = re.compile(r"^```(?:sh|console|)\n(.*?)^```\n", re.MULTILINE | re.DOTALL)
    fence = re.compile(r"^```(?!sh\n|console\n|\n)\w+\n.*?^```\n", re.MULTILINE | re.DOTALL)
    blocks = [block for page in PAGES for block in shell.findall(fence.sub("", page.read_text()))]
    calls = [call for block in blocks for call in CALL.findall(block.replace("\\\n", " "))]
    assert len(calls) > 10
    # then the command takes each, as far as a pipe or another command
    wrong = []
    for call in calls:
        words = itertools.takewhile(lambda word: word not in ("|", "&", "&&", ">"), shlex.split(call, comments=True))
        if said := complaint(list(words)):
            wrong.append(f"datasync {call}: {said}")
    assert wrong == []


def test_the_readme_has_code_and_begins_with_two_single_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert blocks(ROOT / "README.md")
    commands = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [command.count("\n") for command in commands[:2]] == [1, 1]
    assert "datasync demo" in commands[0]
    assert commands[1].rstrip().endswith("-m tests")


def anchors(page: Path) -> set[str]:
    """The anchors that a code host, and the built documentation, make of the headings of *page*."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_between_pages_lead_somewhere_and_have_a_text() -> None:
    broken = []
    for page in PAGES:
        prose = re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)
        for text, link, anchor in re.findall(r"\[([^]]*)\]\(([^)#:]*)(?:#([^)]*))?\)", prose):
            target = page.parent / link if link else page
            if not text or not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: [{text}]({link}#{anchor})")
    assert broken == []


def test_the_pages_need_no_sphinx_to_be_read() -> None:
    # given what only Sphinx understands: directives, roles, and labels
    special = re.compile(r"^```\{.*|^\([\w-]+\)=$|\{(?:doc|ref|py:\w+)\}`.*|^: .*", re.MULTILINE)
    # then no page has any
    assert [(page.name, found) for page in PAGES for found in special.findall(page.read_text())] == []


def test_every_file_that_a_page_names_is_there() -> None:
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    named = {name for page in pages for name in re.findall(r"`([\w/]+/[\w/]+\.(?:py|proto))`", page.read_text())}
    assert named
    assert [name for name in named if not any((ROOT / above / name).exists() for above in ("", "datasync"))] == []


def test_the_reference_lists_exactly_what_each_package_exports() -> None:
    # given the names of every package for users, and the tables of the reference
    packages = [
        name
        for _, name, is_package in pkgutil.walk_packages(datasync.__path__, "datasync.")
        if is_package and not INTERNAL & set(name.split("."))
    ]
    sections = re.split(r"^## (datasync[\w.]*)$", (ROOT / "docs" / "reference.md").read_text(), flags=re.MULTILINE)
    listed = {
        package: re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        for package, section in zip(sections[1::2], sections[2::2], strict=True)
    }
    # then they agree
    for package in ["datasync", *packages]:
        assert sorted(listed.pop(package, [])) == sorted(importlib.import_module(package).__all__), package
    # and what is left are modules, from which a user imports
    for module, names in listed.items():
        assert names
        assert [name for name in names if not hasattr(importlib.import_module(module), name)] == []
