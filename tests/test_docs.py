"""What the pages show works: every block of Python in them is run, page by page, in an empty folder."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]

#: A block of Python; a comment above it can excuse one that is a sketch or needs a server.
BLOCK = re.compile(r"(?P<excuse><!-- not run: [^>]+-->\n+)?^```python\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The code of each block that is to be run, with the line numbers it has in the page."""
    text = page.read_text()
    found = []
    for match in BLOCK.finditer(text):
        if not match["excuse"]:
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


def test_the_readme_has_code_and_begins_with_two_single_commands() -> None:
    text = (ROOT / "README.md").read_text()
    assert blocks(ROOT / "README.md")
    commands = re.findall(r"^```sh\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    assert [command.count("\n") for command in commands[:2]] == [1, 1]
    assert "datasync demo" in commands[0]
    assert commands[1].rstrip().endswith("-m tests")


def test_links_between_pages_lead_somewhere() -> None:
    broken = [
        f"{page.relative_to(ROOT)}: {link}"
        for page in PAGES
        for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert broken == []
