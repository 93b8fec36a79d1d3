"""Settings of the documentation: ``sphinx-build -W docs build/html``."""

from __future__ import annotations

import sys
from configparser import ConfigParser
from pathlib import Path

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

myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
#: The changelog and the rules for contributors are files of the root, included here.
suppress_warnings = ["myst.header"]

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "mixed"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
