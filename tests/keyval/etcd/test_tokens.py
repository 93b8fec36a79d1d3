"""Tokens that the server holds back its answers for: it was restored from a copy, and they are younger (C13)."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from datasync.errors import StoreConnectionError
from datasync.keyval.etcd import datasync_etcd_pb2 as pb
from datasync.keyval.types import PutOp
from tests.conftest import wait_until
from tests.keyval.etcd.conftest import OpenStore, while_stopped
from tests.keyval.etcd.fake import FakeEtcd
from tests.support.servers import EtcdServer, find_etcd

#: Of the user, here only.
PASSWORD = "password-of-the-agent"


@pytest.mark.etcd
@pytest.mark.parametrize("version", ["3.4", "3.5"])
def test_c13_a_token_of_a_store_that_was_restored_since_is_given_up(
    version: str, tmp_path: Path, open_store: OpenStore
) -> None:
    with EtcdServer(find_etcd(version), tmp_path / "etcd") as server:
        # given a copy, and a younger token: it names a place in the server's log, and is good from there on only
        server.enable_auth("agent", PASSWORD, "p/")
        while_stopped(server, server.save, "copy")
        root = open_store(server.endpoint, username="root", password="root")
        for number in range(50):
            root.commit([PutOp("q", b"%d" % number)])
        store = open_store(server.endpoint, username="agent", password=PASSWORD, operation_timeout=1.0)
        assert store.read("p/1") is None
        # when the copy is restored, in whose log that place is still to come
        while_stopped(server, server.restore, "copy", kill=True)
        # then a call that waits for it may fail, and the next one has a token of its own
        with suppress(StoreConnectionError):
            store.read("p/1")
        assert store.read("p/1") is None


def test_c13_a_token_with_which_no_answer_comes_is_given_up(open_store: OpenStore) -> None:
    # given a server that lets every call wait that comes with the first token
    class Restored(FakeEtcd):
        def _range(self, request: pb.RangeRequest, context: Any) -> pb.RangeResponse:
            if ("token", "token-1") in context.invocation_metadata():
                wait_until(lambda: not context.is_active(), "the caller gives up")
            return super()._range(request, context)

    with Restored([]) as fake:
        store = open_store(fake.endpoint, username="agent", password=PASSWORD, operation_timeout=1.5)
        with pytest.raises(StoreConnectionError, match="no response in time"):
            store.read("p/1")
        # then the next call has another one
        assert store.read("p/1") is None
