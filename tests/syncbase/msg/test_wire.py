"""The generated code is the contract: field numbers, names, and no quarrel with other code of the same package."""

from __future__ import annotations

import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from datasync.syncbase.msg import datamsg_pb2 as wire

ROOT = Path(__file__).resolve().parents[3]

#: Message to {number: name}; * marks a repeated field. Numbers from 16 on are datasync's own.
CONTRACT: dict[str, dict[int, str]] = {
    "Seq": {1: "originator", 2: "seqCreatedSec", 4: "seq"},
    "Error": {1: "message"},
    "DataMsgRequest": {1: "msgId", 2: "txn", 3: "dataChanges*", 4: "dataResyncs*"},
    "DataMsgReply": {1: "msgId", 2: "error", 3: "dataChanges", 4: "dataResyncs"},
    "DataChangesReplies": {1: "replies*"},
    "DataResyncsReplies": {1: "replies*"},
    "DataResyncRequests": {1: "msgId", 2: "dataResyncs*"},
    "DataResyncReplies": {
        1: "msgId",
        2: "error",
        3: "dataResyncs",
        16: "result",
        17: "reasons*",
        18: "permanent",
        19: "retry_after",
        20: "revision",
    },
    "DataChangeRequest": {1: "key", 2: "operationType", 3: "content", 4: "content_type", 16: "traceparent"},
    "DataChangeReply": {
        2: "key",
        3: "operationType",
        4: "result",
        16: "error_text",
        17: "absent",
        18: "reasons*",
        19: "permanent",
        20: "retry_after",
        21: "revision",
    },
    "Reason": {1: "resync_name", 2: "key", 3: "text"},
    "DataResyncRequest": {1: "key", 2: "content", 3: "content_type"},
    "DataResyncReply": {1: "resyncId", 2: "key", 3: "result", 16: "error_text"},
    "ResyncNeededCallback": {1: "msgId", 2: "error"},
    "PingRequest": {1: "message"},
    "PingReply": {1: "message"},
}


def test_messages_have_the_fields_of_the_wire_contract() -> None:
    from google.protobuf.descriptor_pb2 import FileDescriptorProto

    # given the file as it was compiled
    file = FileDescriptorProto.FromString(wire.DESCRIPTOR.serialized_pb)
    # then every message has the numbers and names that peers rely on
    many = {True: "*", False: ""}
    fields = {
        message.name: {field.number: field.name + many[field.label == field.LABEL_REPEATED] for field in message.field}
        for message in file.message_type
    }
    assert fields == CONTRACT
    # and the service its name, its methods in lowerCamel, and their streams
    (service,) = file.service
    assert (file.package, service.name) == ("msg", "DataMsgService")
    assert [(m.name, m.input_type, m.output_type, m.client_streaming, m.server_streaming) for m in service.method] == [
        ("dataChanges", ".msg.DataChangeRequest", ".msg.DataChangeReply", True, True),
        ("dataResyncs", ".msg.DataResyncRequests", ".msg.DataResyncReplies", False, False),
        ("ping", ".msg.PingRequest", ".msg.PingReply", False, False),
    ]


def test_a_request_has_the_very_bytes_that_a_go_peer_writes() -> None:
    # given the fields in the order of their numbers, written by hand: tag, length, content
    request = wire.DataChangeRequest(key="k", operationType=wire.DEL, content=b"{}", content_type="j")
    assert request.SerializeToString() == b"\x0a\x01k" + b"\x10\x01" + b"\x1a\x02{}" + b"\x22\x01j"
    reply = wire.DataChangeReply(key="k", operationType=wire.DEL, result=1, error_text="no")
    assert reply.SerializeToString() == b"\x12\x01k" + b"\x18\x01" + b"\x20\x01" + b"\x82\x01\x02no"


def test_other_code_generated_for_the_package_msg_does_not_collide() -> None:
    # given a program that already has cn-infra's own datamsg.proto in protobuf's process-wide pool
    program = """
from google.protobuf import descriptor_pb2, descriptor_pool
file = descriptor_pb2.FileDescriptorProto(name="datamsg.proto", package="msg", syntax="proto3")
file.message_type.add(name="Error").field.add(name="text", number=7, type=9, label=1)
descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
from datasync.syncbase.msg import datamsg_pb2
assert [field.number for field in datamsg_pb2.Error.DESCRIPTOR.fields] == [1]
"""
    # when datasync's is imported too / then both live side by side
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, cwd=ROOT, timeout=50)


def test_the_committed_code_is_what_the_compiler_writes() -> None:
    try:
        version = metadata.version("grpcio-tools")
    except metadata.PackageNotFoundError:
        version = "none"
    if version != "1.62.3":
        # Not a server that CI must have: that compiler cannot share an environment with the newest protobuf.
        pytest.skip(f"needs grpcio-tools 1.62.3, found {version}")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", ".ci/generate", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
