"""A process that gevent has patched: everything works there, gRPC once it was told; C15."""

from __future__ import annotations

import pytest

from tests.lifecycle.conftest import Program

pytest.importorskip("gevent")


@pytest.mark.parametrize("lines", ["local,memory,sqlite,rest", "grpc", "etcd", "local,memory,sqlite,rest,grpc,etcd"])
def test_c15_everything_works_in_a_process_that_gevent_has_patched(program: Program, etcd_url: str, lines: str) -> None:
    # given a patched process, and gRPC that was told of it
    if "etcd" in lines and not etcd_url:
        pytest.skip("etcd is not there")
    # when changes go through these / then all arrive, in order, other greenlets have their turns, and nothing is left
    assert program("patched", lines) == []


@pytest.mark.parametrize("lines", ["grpc", "etcd"])
def test_c15_grpc_that_was_not_told_of_gevent_is_refused_instead_of_blocking_all(program: Program, lines: str) -> None:
    (told,) = program("patched", lines, "--untold")
    assert "call grpc.experimental.gevent.init_gevent() after monkey.patch_all()" in told
