"""Values of any kind: a codec turns them into bytes and back.

Source: contract C19.
"""

from datasync.codecs.api import Codec
from datasync.codecs.messages import message
from datasync.codecs.plain import json, raw, text
from datasync.codecs.typed_values import typed
from datasync.codecs.yaml_text import yaml

__all__ = [
    # Values of Python
    "json",
    "typed",
    "yaml",
    "text",
    "raw",
    # Protobuf messages
    "message",
    # A codec of your own
    "Codec",
]
