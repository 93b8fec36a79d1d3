"""All targets by name."""

from __future__ import annotations

from tests.security.fuzz.etcd_targets import EtcdAnswers, EtcdWire
from tests.security.fuzz.grpc_targets import GrpcMessages, GrpcPeer, GrpcServer
from tests.security.fuzz.rest_targets import Events, RestAnswers, RestApplication, RestServer
from tests.security.fuzz.sqlite_targets import SQLiteFiles
from tests.security.fuzz.target import Target
from tests.security.fuzz.text_targets import CommandLine, ConfigFiles, Urls
from tests.security.fuzz.value_targets import Values

TARGETS: dict[str, type[Target]] = {
    target.name: target
    for target in (
        Urls,
        ConfigFiles,
        CommandLine,
        Values,
        RestApplication,
        RestServer,
        RestAnswers,
        Events,
        GrpcMessages,
        GrpcServer,
        GrpcPeer,
        EtcdAnswers,
        EtcdWire,
        SQLiteFiles,
    )
}
