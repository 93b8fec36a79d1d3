"""The OpenAPI document of the routes. A test generates requests from it and checks the responses against it."""

from __future__ import annotations

from typing import Any

from datasync.restsync.app.requests import IGNORED
from datasync.restsync.encoding import SERIALIZERS
from datasync.restsync.keys import MAX_KEY
from datasync.restsync.problems import PROBLEM_TYPE, PROBLEMS, URN

Json = dict[str, Any]

_BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
_VALUE = {name: ({"schema": {}} if name.endswith("json") else _BINARY) for name in SERIALIZERS}
_INTEGER: Json = {"type": "integer"}
_TAG = {"ETag": {"schema": {"type": "string"}, "description": "The revision, for If-Match and If-None-Match."}}
_MARK = {
    "Datasync-Not-Accepted": {
        "schema": {"type": "string"},
        "description": "Up to ten subscriptions that have not accepted the value, each as in /escaped/{key}, between "
        "commas; absent when all have.",
    }
}
_NAMED = {"Datasync-Key": {"schema": {"type": "string"}, "description": "The key of the path, as in /escaped/{key}."}}


_KEY: Json = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "Everything after /keys/, slashes included; an encoded slash is a slash. A segment must not be . or "
    "..; control characters are not allowed. The header Datasync-Key, with the key as in /escaped/{key}, makes the "
    "server refuse the request (412) if a gateway has rewritten the path.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
    "example": "interface/eth0",
}
_ESCAPED_KEY: Json = {
    **_KEY,
    "description": "The key in a spelling that no gateway rewrites: its UTF-8, each byte but letters, digits, - and _ "
    "as ~XX.",
    "schema": {"type": "string", "pattern": "^([A-Za-z0-9_-]|~[0-9A-Fa-f]{2})+$", "maxLength": 3 * MAX_KEY},
    "example": "interface~2Feth0",
}

_EVENT: Json = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["resync", "items", "synced", "change"]},
        "data": {"type": "string", "description": "JSON."},
        "id": {"type": "string"},
        "retry": _INTEGER,
    },
}

_ITEM: Json = {
    "type": "object",
    "required": ["key"],
    "description": "value has a JSON value, data any other value in base64.",
    "properties": {
        "key": {"type": "string"},
        "revision": _INTEGER,
        "content_type": {"type": "string", "enum": list(SERIALIZERS)},
        "value": {},
        "data": {"type": "string", "format": "byte"},
        "accepted": {
            "type": "boolean",
            "enum": [False],
            "description": "In a list: a subscription has not accepted the value, and gets it again.",
        },
        "not_accepted": {
            "type": "object",
            "additionalProperties": {"type": "string"},
            "description": "Beside accepted: each such subscription, with the class of its error.",
        },
    },
}


def _item(*required: str, op: str = "") -> Json:
    """Return the schema of one item of a full state or of a transaction."""
    types = ["application/json"] if "value" in required else list(SERIALIZERS)
    properties: Json = {
        "op": {"type": "string", "enum": [op]},
        "key": _KEY["schema"],
        "value": {},
        "data": {"type": "string", "format": "byte"},
        "content_type": {"type": "string", "enum": types},
        **{name: {"description": "Ignored, so that an item of a list can be sent back."} for name in sorted(IGNORED)},
    }
    names = {*required, *IGNORED} | ({"content_type"} if {"value", "data"} & {*required} else set())
    return {
        "type": "object",
        "required": list(required),
        "additionalProperties": False,
        "properties": {name: schema for name, schema in properties.items() if name in names},
    }


def _record(**properties: Json) -> Json:
    """Return the schema of an object with all of *properties*."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _items(name: str, *kinds: Json) -> Json:
    """Return the schema of a body that has a list of items of any of *kinds* under *name*."""
    items = {"type": "array", "items": {"oneOf": list(kinds)}}
    return _record(**{name: items}) | {"additionalProperties": False}


_SCHEMAS: Json = {
    "Item": _ITEM,
    "Listing": _record(
        revision=_INTEGER,
        items={"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
        next={"type": "string", "nullable": True, "description": "The next after=; null on the last page."},
    ),
    "State": _items("items", _item("key", "value"), _item("key", "data")),
    "Transaction": _items(
        "changes",
        _item("op", "key", "value", op="Put"),
        _item("op", "key", "data", op="Put"),
        _item("op", "key", op="Delete"),
    ),
    "Committed": _record(
        revision=_INTEGER,
        ignored={"type": "array", "items": {"type": "string"}, "description": "Deletes of keys that did not exist."},
    ),
    "Written": _record(key={"type": "string"}, revision=_INTEGER),
    "Status": _record(
        sources={"type": "array", "items": {"type": "object"}},
        held={"type": "array", "items": {"type": "object"}, "description": "Each holder of deletes, for /release."},
    ),
    "Release": _record(
        kind={"type": "string"},
        name={"type": "string"},
        seen={"type": "string", "description": "As /status has it under held."},
    )
    | {"additionalProperties": False},
    "Released": _record(released=_INTEGER),
    "Replaced": _record(keys=_INTEGER, revision=_INTEGER),
    "Problem": {
        "type": "object",
        "description": "RFC 9457. reasons: subscription to the text by key, and for no key when it rejected all; "
        "errors: the same as one text; retryable: false when a subscriber wants the same change no more; retry_after: "
        "seconds after which it would like to have it again; silent: subscribers that did not acknowledge; "
        "revision: the one at which a key was looked for and not found.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "enum": [URN + code for code in PROBLEMS]},
            "title": {"type": "string"},
            "status": _INTEGER,
            "detail": {"type": "string"},
            "errors": {"type": "object", "additionalProperties": {"type": "string"}},
            "reasons": {
                "type": "object",
                "additionalProperties": {"type": "object", "additionalProperties": {"type": "string"}},
            },
            "retryable": {"type": "boolean"},
            "retry_after": {"type": "number", "minimum": 0},
            "silent": {"type": "array", "items": {"type": "string"}},
            "revision": _INTEGER,
        },
    },
}


#: Problems of every request with a body, and of every change of keys.
_BODY_PROBLEMS = ("bad-request", "unauthorized", "too-large", "unsupported-type")
_CHANGE_PROBLEMS = ("forbidden", "refused", "internal", "unsupported", "undelivered", "unanswered")


def _problems(*codes: str) -> Json:
    # Codes may share a status: the document describes each status once, by its first code.
    found: Json = {}
    for code in codes:
        found.setdefault(str(PROBLEMS[code].status), {"$ref": f"#/components/responses/{code}"})
    return found


def _problem(code: str) -> Json:
    schema = {"$ref": "#/components/schemas/Problem"}
    described: Json = {"description": PROBLEMS[code].title, "content": {PROBLEM_TYPE: {"schema": schema}}}
    if code == "unauthorized":
        described["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    if code == "refused" or PROBLEMS[code].retry_after is not None:
        described["headers"] = {"Retry-After": {"schema": _INTEGER, "description": "Seconds."}}
    return described


def _success(description: str, schema: str, headers: Json | None = None) -> Json:
    return {"description": description, "content": _json_of(schema), **({"headers": headers} if headers else {})}


def _json_of(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}


_LIST: Json = {
    "operationId": "list",
    "summary": "List the pairs under a prefix in key order, a page at a time",
    "parameters": [
        _query("prefix", {"type": "string", "maxLength": MAX_KEY}, "Plain text; all keys without it."),
        _query("after", {"type": "string", "maxLength": MAX_KEY}, "Only keys after this one."),
        _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Pairs on a page."),
        _query("values", {"type": "boolean", "default": True}, "false: without values."),
        _header("If-None-Match", "304 while no key has changed."),
    ],
    "responses": {
        "200": _success(
            "A page; ETag is the revision of the whole state, absent when an item is not accepted.", "Listing", _TAG
        ),
        "304": {"description": "No key has changed.", "headers": _TAG},
        **_problems("bad-request", "unauthorized", "forbidden", "closed"),
    },
}

_RESYNC: Json = {
    "operationId": "resync",
    "summary": "Replace the whole state, and wait until every subscriber has acknowledged a RESYNC",
    "requestBody": {"required": True, "content": _json_of("State")},
    "responses": {
        "200": _success("Every subscriber has accepted it.", "Replaced"),
        **_problems(*_BODY_PROBLEMS, "forbidden", "refused", "internal", "closed", "unanswered"),
    },
}

_TRANSACTION: Json = {
    "operationId": "transaction",
    "summary": "Apply changes as one transaction, and wait for the subscribers",
    "requestBody": {"required": True, "content": _json_of("Transaction")},
    "responses": {
        "200": _success("Every subscriber has accepted it.", "Committed"),
        **_problems("unwatched", *_BODY_PROBLEMS, *_CHANGE_PROBLEMS),
    },
}

_GET: Json = {
    "operationId": "get",
    "summary": "Get the value of a key, byte for byte",
    "parameters": [_header("If-None-Match", "304 while the key has this revision.")],
    "responses": {
        "200": {"description": "The value.", "content": _VALUE, "headers": _TAG | _NAMED | _MARK},
        "304": {"description": "The value has not changed.", "headers": _TAG | _NAMED | _MARK},
        **_problems("bad-request", "unauthorized", "forbidden", "no-such-key", "rewritten", "closed"),
    },
}

_PUT: Json = {
    "operationId": "put",
    "summary": "Create or change a key, and wait for its subscribers",
    "parameters": [
        _header("If-Match", "Only if the key has this revision; *: only if the key exists."),
        _header("If-None-Match", "*: only if the key does not exist."),
    ],
    "requestBody": {"required": True, "content": _VALUE},
    "responses": {
        "200": _success("Changed, and accepted by every subscriber.", "Written", _TAG | _NAMED),
        "201": _success("Created, and accepted by every subscriber.", "Written", _TAG | _NAMED),
        **_problems("unwatched", "conflict", *_BODY_PROBLEMS, *_CHANGE_PROBLEMS),
    },
}

_DELETE: Json = {
    "operationId": "delete",
    "summary": "Delete a key, and wait for its subscribers",
    "parameters": [_header("If-Match", "Only if the key has this revision.")],
    "responses": {
        "200": _success("Deleted, and accepted by every subscriber.", "Written", _NAMED),
        **_problems("bad-request", "unauthorized", "no-such-key", "conflict", *_CHANGE_PROBLEMS),
    },
}

_EVENTS: Json = {
    "operationId": "events",
    "summary": "Stream a snapshot, then every transaction, as server-sent events",
    "description": "Events: resync, items, synced, change. Last-Event-ID resumes the stream after that event; when "
    "the server cannot resume it, the stream starts with a resync that has the reason.",
    "parameters": [
        {
            **_query(
                "prefix", {"type": "array", "items": {"type": "string", "maxLength": MAX_KEY}}, "Prefixes of keys."
            ),
            "explode": True,
        },
        _query("follow", {"type": "boolean", "default": True}, "false: end the stream when it has caught up."),
        _query("heartbeat", {"type": "number", "minimum": 0.1, "maximum": 60}, "Seconds between heartbeats."),
        _header("Last-Event-ID", "Resume after this event."),
    ],
    "responses": {
        "200": {"description": "The stream.", "content": {"text/event-stream": {"schema": _EVENT}}},
        **_problems("bad-request", "unauthorized", "forbidden", "overloaded"),
    },
}


_STATUS: Json = {
    "operationId": "status",
    "summary": "Tell what the page shows: sources, subscriptions, requests, held deletes and the first keys",
    "parameters": [
        _query("prefix", {"type": "string", "maxLength": MAX_KEY}, "Only keys that contain it."),
        _query("limit", {"type": "integer", "minimum": 0, "maximum": 1000, "default": 200}, "Keys; 0 for none."),
    ],
    "responses": {
        "200": _success("The status, also of an adapter that is closed.", "Status"),
        **_problems("bad-request", "unauthorized", "forbidden"),
    },
}

_RELEASE: Json = {
    "operationId": "release",
    "summary": "Let the deletes go on that max_delete holds back, if they are those that were seen",
    "requestBody": {"required": True, "content": _json_of("Release")},
    "responses": {
        "200": _success("They go on.", "Released"),
        **_problems("not-found", "conflict", *_BODY_PROBLEMS, "forbidden", "closed"),
    },
}


def _escaped(**operations: Json) -> Json:
    """Return *operations* for the path of escaped keys: an operation id is used once."""
    return {name: one | {"operationId": f"{one['operationId']}Escaped"} for name, one in operations.items()}


def document(base: str = "/", *, page: bool = True) -> Json:
    """Return the document of an application that is mounted at *base*; *page* is True if it serves the page."""
    of_page: Json = {"/status": {"get": _STATUS}, "/release": {"post": _RELEASE}} if page else {}
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "datasync over HTTP",
            "version": "1",
            "description": "Changes for the subscribers of a process. The response to a change is sent when every "
            "subscriber of its key has acknowledged it. A value is JSON or bytes, and is kept byte for byte.",
        },
        "servers": [{"url": base}],
        "security": [{"token": []}, {}],
        "paths": {
            "/keys": {"get": _LIST, "put": _RESYNC, "patch": _TRANSACTION},
            "/keys/{key}": {"parameters": [_KEY], "get": _GET, "put": _PUT, "delete": _DELETE},
            "/escaped/{key}": {"parameters": [_ESCAPED_KEY], **_escaped(get=_GET, put=_PUT, delete=_DELETE)},
            "/events": {"get": _EVENTS},
            **of_page,
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _SCHEMAS,
            "responses": {code: _problem(code) for code in PROBLEMS},
        },
    }
