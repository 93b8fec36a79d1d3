"""mypy and pyright agree with what the pages say about types: C19."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SNIPPETS = "tests/typing/values.py"


def run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=280, check=False
    )


@pytest.mark.timeout(300)
def test_c19_mypy_accepts_what_users_write_and_nothing_else(tmp_path: Path) -> None:
    done = run("mypy", "--strict", "--cache-dir", str(tmp_path), "--follow-imports=silent", SNIPPETS)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.skipif(importlib.util.find_spec("pyright") is None, reason="pyright is not installed")
def test_c19_pyright_accepts_what_users_write() -> None:
    done = run("pyright", "--pythonpath", sys.executable, SNIPPETS)
    assert done.returncode == 0, done.stdout + done.stderr
