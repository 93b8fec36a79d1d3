"""The parts of a write: its condition and body, and what a response to it says.

Source: contract C16, C17, C23.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from datasync.errors import InvalidArgumentError, StoreError, UnknownOutcome
from datasync.events import ChangeValue, Op
from datasync.restsync.client.event_source import check_revision
from datasync.restsync.encoding import change_of
from datasync.restsync.keys import check_path_key, check_text
from datasync.restsync.problems import code_of
from datasync.runtime.http_client.connections import ReceivedResponse


def of_another_key(subject: str, write: bool) -> StoreError:
    """Return the error for a response that names another key than the request."""
    text = f"{subject}: the response is about another key: something between client and server rewrites paths"
    return UnknownOutcome(f"{text}; another key may have been changed") if write else StoreError(text)


def is_no_such_key(response: ReceivedResponse) -> bool:
    """Return True if the server says that the key does not exist."""
    return code_of(response.content_type, response.data)[0] == "no-such-key"


def written(subject: str, response: ReceivedResponse) -> dict[str, Any]:
    """Return the document of a success; without a revision it is truncated, or of another server."""
    try:
        document: dict[str, Any] = json.loads(response.data)
        check_revision(document["revision"])
        return document
    except (ValueError, TypeError, KeyError, RecursionError):
        text = f"{subject}: the response is not from a datasync server; the write may have been applied"
    raise UnknownOutcome(text)  # outside the handler: the context would quote the response


def change_text(key: str, change: ChangeValue) -> str:
    """Return *change* as an item of a transaction."""
    check_path_key(key)
    payload = None if change.get_change_type() is Op.DELETE else change
    return change_of(key, 0, payload)


def conditions(if_match: str | None, if_absent: bool) -> dict[str, str]:
    """Return the headers of a condition."""
    if if_match is not None and if_absent:
        raise InvalidArgumentError("if_match and if_absent exclude each other")
    if if_match is not None:
        check_text(if_match, "an etag")
        return {"If-Match": f'"{if_match}"'}
    return {"If-None-Match": "*"} if if_absent else {}


def revision_in(document: Mapping[str, Any]) -> int:
    """Return the revision in *document*; 0 from a server that does not say it where a delete found no key."""
    with suppress(KeyError, ValueError):
        return check_revision(document["revision"])
    return 0
