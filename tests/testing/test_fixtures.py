"""The fixtures and the marker, in a pytest of their own, as users have them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def pytest_of_a_user(folder: Path, *arguments: str, **files: str) -> str:
    """Run pytest on *files* in *folder*, where a warning is an error; the output."""
    for name, text in files.items():
        (folder / f"{name}.py").write_text(text)
    (folder / "pytest.ini").write_text("[pytest]\n")  # or pytest would find the settings of this project
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-c",
            "pytest.ini",
            "-p",
            "no:cacheprovider",
            "-q",
            "-W",
            "error",
            "--strict-markers",
            *arguments,
        ],
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        timeout=50,
    )
    return done.stdout + done.stderr


def test_the_tests_of_the_example_pass(tmp_path: Path) -> None:
    example = ROOT / "datasync" / "examples" / "guides" / "how_to_test.py"
    out = pytest_of_a_user(tmp_path, "-p", "datasync.testing", str(example))
    assert "8 passed" in out, out


def test_a_conftest_may_import_the_helpers_before_pytest_loads_the_fixtures(tmp_path: Path) -> None:
    # given a conftest in the usual order of imports, with a codec and a view of its own
    conftest = """
import pytest
from datasync import View, codecs
from datasync.testing import override, settle
from datasync.testing.fixtures import datasync_store as again

pytest_plugins = ["datasync.testing"]

@pytest.fixture
def datasync_codec():
    return codecs.text

@pytest.fixture
def names(datasync_plugin):
    with View(datasync_plugin, "names", codec=codecs.text) as view:
        yield view
"""
    test = """
import pytest
from datasync.testing import ABSENT, settle

@pytest.mark.datasync_override("names", a="Ada")
class TestNames:
    @pytest.mark.datasync_override("names", {"b": "Bob", "c": ABSENT})
    def test_of_both(self, names, datasync_plugin):
        datasync_plugin.put("c", "Cid")
        settle(names)
        assert dict(names) == {"a": "Ada", "b": "Bob"}

    def test_of_the_class(self, names, datasync_registry):
        assert dict(names) == {"a": "Ada"}

def test_of_none(names, datasync_url, datasync_store, datasync_short_backoffs):
    assert not names and datasync_store.name == datasync_url
"""
    # when it runs / then nothing warns
    out = pytest_of_a_user(tmp_path, conftest=conftest, test_names=test)
    assert "3 passed" in out, out


def test_a_wrong_override_fails_its_test_only(tmp_path: Path) -> None:
    test = """
import pytest
from datasync import open_view
flags = open_view("memory://", "")

@pytest.mark.datasync_override(flags, a={1, 2})
def test_wrong(): pass

def test_right(): pass
"""
    out = pytest_of_a_user(tmp_path, "-p", "datasync.testing", test_flags=test)
    assert "'a' cannot be overridden" in out
    assert "1 passed, 1 error" in out


@pytest.mark.parametrize("module", ["datasync", "datasync.testing"])
def test_no_program_loads_pytest_with_the_library(module: str) -> None:
    # given a program that imports the library, or the helpers / then pytest is not loaded, nor the helpers by the first
    program = f"import sys, {module}; print('pytest' in sys.modules, 'datasync.testing' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.stdout.split() == ["False", str(module == "datasync.testing")]
