"""Values of any kind: a codec turns them into bytes and back.

Source: contract C19.
"""

from typing import TYPE_CHECKING

from datasync.codecs.api import Codec
from datasync.codecs.plain import json, raw, text
from datasync.runtime.lazy import load_lazily

if TYPE_CHECKING:
    from datasync.codecs.messages import message
    from datasync.codecs.typed_values import typed
    from datasync.codecs.yaml_text import yaml
else:  # loaded on first use: a program with JSON values needs no encoding of messages
    __getattr__, __dir__ = load_lazily(
        __name__,
        {
            "message": "datasync.codecs.messages",
            "typed": "datasync.codecs.typed_values",
            "yaml": "datasync.codecs.yaml_text",
        },
    )

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
