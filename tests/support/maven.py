"""Programs for Java, from Maven Central by Maven itself, once for each version, into the user's cache."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.conftest import absent

#: Seconds that a download may take.
FETCH_TIMEOUT = 400.0

_POM = """<project xmlns="http://maven.apache.org/POM/4.0.0"><modelVersion>4.0.0</modelVersion>
<groupId>tests</groupId><artifactId>jars</artifactId><version>1</version><packaging>pom</packaging><dependencies>
{dependencies}
</dependencies></project>
"""
_DEPENDENCY = "<dependency><groupId>{}</groupId><artifactId>{}</artifactId><version>{}</version></dependency>"


def find_jars(name: str, *artifacts: str) -> Path:
    """The folder with the jars of *artifacts*, as ``group:name:version``, and of what they need; *name* has a version.

    The test is skipped (failed in CI) where there is no Java, or no way to the jars.
    """
    if shutil.which("java") is None:
        absent(f"Java, for {name}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "datasync-tests"
    folder = cache / name
    if not folder.exists():
        if shutil.which("mvn") is None:
            absent(f"Maven, for {name}")
        cache.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=cache) as aside:  # moved into place whole: another run may be about to do the same
            dependencies = "\n".join(_DEPENDENCY.format(*artifact.split(":")) for artifact in artifacts)
            (Path(aside) / "pom.xml").write_text(_POM.format(dependencies=dependencies))
            command = ["mvn", "-q", "-B", "dependency:copy-dependencies", "-DoutputDirectory=libs"]
            done = subprocess.run(command, cwd=aside, capture_output=True, timeout=FETCH_TIMEOUT, check=False)
            if done.returncode:
                absent(f"{name} from Maven Central")
            try:
                os.replace(Path(aside) / "libs", folder)
            except OSError:  # it is there by now
                assert folder.exists()
    return folder
