"""Key-value stores: ``connect(url)``, brokers that read and write, and what a driver implements."""

from datasync.commits import Batch, Commit
from datasync.keyval.api import Store
from datasync.keyval.broker import BytesBroker, BytesTxn, GetResult
from datasync.keyval.driver import Scan, Stream
from datasync.keyval.kvproto import ProtoBroker, ProtoGetResult, ProtoTxn, ProtoWrapper, StoredKeyVal
from datasync.keyval.types import (
    ROOT,
    Capability,
    CommitResult,
    Condition,
    DeleteOp,
    KeyValue,
    PutOp,
    RewoundError,
    WriteOp,
)
from datasync.keyval.urls import Driver, StoreURL, connect, parse_url
from datasync.serializer import Serializer, SerializerJSON, SerializerProto

__all__ = [
    # Open a store
    "ROOT",
    "StoreURL",
    "connect",
    "parse_url",
    # Read and write it
    "BytesBroker",
    "BytesTxn",
    "GetResult",
    "KeyValue",
    # The same with messages
    "ProtoBroker",
    "ProtoGetResult",
    "ProtoTxn",
    "ProtoWrapper",
    "Serializer",
    "SerializerJSON",
    "SerializerProto",
    "StoredKeyVal",
    # Write a driver
    "Batch",
    "Capability",
    "Commit",
    "CommitResult",
    "Condition",
    "DeleteOp",
    "Driver",
    "PutOp",
    "RewoundError",
    "Scan",
    "Store",
    "Stream",
    "WriteOp",
]
