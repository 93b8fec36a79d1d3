"""Settings of the documentation: ``sphinx-build -W -b html docs build/html``.

The pages are plain Markdown, so that a code host shows them as they are. What only the built documentation has is added
here while a page is read: the navigation, from the lists of links; the two files of the root; and the docstrings of the
names in the tables of ``reference.md``.
"""

from __future__ import annotations

import importlib
import re
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

_metadata = ConfigParser()
_metadata.read(ROOT / "setup.cfg")

project = "datasync"
author = _metadata["metadata"]["author"]
release = version = _metadata["metadata"]["version"]
project_copyright = author

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"datasync {release}"

myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False

#: Pages whose lists of links are the navigation.
NAVIGATION = {"index", "guide/index", "transports/index", "recipes/index", "lab/index"}
#: Pages that stand for a file of the root.
ROOT_FILES = {"changelog": "CHANGELOG.md", "contributing": "CONTRIBUTING.md"}


def setup(app: Any) -> None:
    app.connect("source-read", complete)


def complete(app: object, docname: str, source: list[str]) -> None:
    """Add to a page what only the built documentation has."""
    if docname in NAVIGATION:
        source[0] += navigation(source[0])
    elif docname in ROOT_FILES:
        source[0] = (ROOT / ROOT_FILES[docname]).read_text().replace("](docs/", "](")
    elif docname == "reference":
        source[0] = with_docstrings(source[0])


def navigation(text: str) -> str:
    """A hidden table of contents for each section that is a list of links."""
    found = ""
    for section in re.split(r"^#+ ", text, flags=re.MULTILINE):
        pages = re.findall(r"^- \[[^]]+\]\(([^)]+)\.md\)$", section, re.MULTILINE)
        if pages:
            caption = section.partition("\n")[0]
            found += "\n```{toctree}\n:hidden:\n:caption: " + caption + "\n\n" + "\n".join(pages) + "\n```\n"
    return found


def with_docstrings(text: str) -> str:
    """The reference, with the docstring of every name below the tables of its package."""
    parts = re.split(r"^## (datasync[\w.]*)$", text, flags=re.MULTILINE)
    page = parts[0]
    for package, section in zip(parts[1::2], parts[2::2], strict=True):
        names = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        directives = "".join(directive(package, name, text) for name in names)
        page += f"## {package}{section}\n```{{eval-rst}}\n{directives}```\n\n"
    return page


def directive(package: str, name: str, page: str) -> str:
    """The directive that shows a docstring. Constants and protobuf messages have only their line in the table."""
    value = getattr(importlib.import_module(package), name)
    if not callable(value) or hasattr(value, "DESCRIPTOR"):
        return ""
    if package == "datasync" and value.__module__.count(".") > 1:
        return ""  # handed on from the package where its docstring is shown
    if not isinstance(value, type):
        return f".. autofunction:: {package}.{name}\n"
    # A base class that is not public itself, such as a mixin: its methods belong to this class.
    ours = [base.__name__ for base in value.__mro__[1:] if base.__module__.startswith("datasync.")]
    hidden = any(f"`{base}`" not in page for base in ours)
    return f".. autoclass:: {package}.{name}\n   :members:\n" + "   :inherited-members:\n" * hidden
