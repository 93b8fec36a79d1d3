"""Builds the Go peer, from the very .proto that the package was generated from.

No protoc is needed: the plugins take the file's descriptor, which the generated Python code carries. Modules come
through Go's own module proxy; Go's caches and the built program are kept between runs.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from google.protobuf.compiler.plugin_pb2 import CodeGeneratorRequest, CodeGeneratorResponse
from google.protobuf.descriptor_pb2 import FileDescriptorProto

from datasync.syncbase.msg import datamsg_pb2
from tests.conftest import absent

SOURCES = Path(__file__).parent / "peer"
KAFKA_SOURCES = Path(__file__).parent / "kafka_peer"
POSTGRES_SOURCES = Path(__file__).parent / "postgres_peer"
#: What generates the Go code: module and version.
PLUGINS = {
    "protoc-gen-go": "google.golang.org/protobuf/cmd/protoc-gen-go@v1.36.6",
    "protoc-gen-go-grpc": "google.golang.org/grpc/cmd/protoc-gen-go-grpc@v1.5.1",
}
#: Seconds for one step: the first build compiles all of grpc-go.
STEP_TIMEOUT = 500


def go_peer() -> Path:
    """The program; the test is skipped (failed in CI) where there is no Go, or no way to its modules."""
    go = _find_go()
    folder = Path(tempfile.gettempdir()) / f"datasync-go-peer-{os.getuid()}-{_fingerprint(go)}"
    program = folder / "peer"
    if not program.exists():
        with tempfile.TemporaryDirectory() as aside:
            _keep(_build(go, Path(aside)), folder, program)
    return program


def go_kafka_peer() -> Path:
    """The program that speaks Kafka by the library of the original; absent as ``go_peer``."""
    return _whole_peer("kafka", KAFKA_SOURCES)


def go_postgres_peer() -> list[str]:
    """The command of the program that writes a table of PostgreSQL; absent as ``go_peer``."""
    return [str(_whole_peer("postgres", POSTGRES_SOURCES))]


def _whole_peer(name: str, sources: Path) -> Path:
    """The program of *sources*, for which nothing is generated."""
    go = _find_go()
    folder = Path(tempfile.gettempdir()) / f"datasync-go-{name}-{os.getuid()}-{_fingerprint_of(go, sources)}"
    program = folder / "peer"
    if not program.exists():
        with tempfile.TemporaryDirectory() as aside:
            for source in sources.iterdir():
                shutil.copy(source, aside)
            _run([go, "build", "-o", "program", "."], Path(aside), {})
            _keep(Path(aside) / "program", folder, program)
    return program


def _find_go() -> str:
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    if go is None:
        absent("Go")
    return go


def _keep(built: Path, folder: Path, program: Path) -> None:
    """Move *built* into place whole: another run may be about to do the same."""
    folder.mkdir(mode=0o700, exist_ok=True)
    os.replace(shutil.copy(built, folder / f"peer-{os.getpid()}"), program)


def _build(go: str, folder: Path) -> Path:
    for name, module in PLUGINS.items():
        _run([go, "install", module], folder, {"GOBIN": str(folder)})
        _generate(folder / name, folder / "peer")
    for name in ("main.go", "go.mod", "go.sum"):
        shutil.copy(SOURCES / name, folder / "peer" / name)
    _run([go, "build", "-o", "program", "."], folder / "peer", {})
    return folder / "peer" / "program"


def _generate(plugin: Path, folder: Path) -> None:
    """Run a plugin of protoc's as protoc would."""
    file = FileDescriptorProto.FromString(datamsg_pb2.DESCRIPTOR.serialized_pb)
    request = CodeGeneratorRequest(
        file_to_generate=[file.name], parameter=f"module=peer,M{file.name}=peer/msg", proto_file=[file]
    )
    done = subprocess.run(
        [plugin], input=request.SerializeToString(), capture_output=True, timeout=STEP_TIMEOUT, check=True
    )
    response = CodeGeneratorResponse.FromString(done.stdout)
    assert not response.error, response.error
    for made in response.file:
        path = folder / made.name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(made.content)


def _run(command: Sequence[str], folder: Path, extra: dict[str, str]) -> None:
    environment = {**os.environ, "GOFLAGS": "-mod=readonly -buildvcs=false", "CGO_ENABLED": "0", **extra}
    done = subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=STEP_TIMEOUT, check=False
    )
    if done.returncode and any(
        sign in done.stderr for sign in ("dial tcp", "no such host", "i/o timeout", "404", "proxy")
    ):
        absent("Go's module proxy")
    assert done.returncode == 0, f"{' '.join(command)}:\n{done.stderr[-4000:]}"


def _fingerprint(go: str) -> str:
    """Changes with whatever goes into the program."""
    return _fingerprint_of(go, SOURCES, datamsg_pb2.DESCRIPTOR.serialized_pb + repr(PLUGINS).encode())


def _fingerprint_of(go: str, sources: Path, more: bytes = b"") -> str:
    digest = hashlib.sha256(more)
    for path in sorted(sources.iterdir()):
        digest.update(path.read_bytes())
    digest.update(subprocess.run([go, "version"], capture_output=True, timeout=60, check=True).stdout)
    return digest.hexdigest()[:16]
