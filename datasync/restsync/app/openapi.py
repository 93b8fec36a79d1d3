"""The OpenAPI document of the routes, written beside them and checked against them by a generator of requests."""

from __future__ import annotations

from typing import Any

from datasync.restsync.encoding import SERIALIZERS
from datasync.restsync.keys import MAX_KEY
from datasync.restsync.problems import CODES, PROBLEM_TYPE, URN

Json = dict[str, Any]

_BINARY: Json = {"schema": {"type": "string", "format": "binary"}}
_VALUE = {name: ({"schema": {}} if name.endswith("json") else _BINARY) for name in SERIALIZERS}
_TAG = {"ETag": {"schema": {"type": "string"}, "description": "The revision, for If-Match and If-None-Match."}}


def document(base: str = "/") -> Json:
    """The document, for an application that is mounted at *base*."""
    return {
        "openapi": "3.0.3",
        "info": {
            "title": "datasync over HTTP",
            "version": "1",
            "description": "Changes that a process subscribes to, and its answers. A change is answered when every "
            "subscriber of its key has answered. The value of a key is JSON or bytes; the server keeps it as it came.",
        },
        "servers": [{"url": base}],
        "security": [{"token": []}, {}],
        "paths": {
            "/keys": {"get": _list(), "put": _resync(), "patch": _transaction()},
            "/keys/{key}": {"parameters": [_KEY], "get": _get(), "put": _put(), "delete": _delete()},
            "/events": {"get": _events()},
        },
        "components": {
            "securitySchemes": {"token": {"type": "http", "scheme": "bearer"}},
            "schemas": _SCHEMAS,
            "responses": {code: _problem(code) for code in CODES},
        },
    }


_KEY: Json = {
    "name": "key",
    "in": "path",
    "required": True,
    "description": "All that follows /keys/, slashes included; an encoded slash is a slash. No segment may be . or .. "
    "and no character a control character.",
    "schema": {"type": "string", "minLength": 1, "maxLength": MAX_KEY},
    "example": "interface/eth0",
}

_EVENT: Json = {
    "type": "object",
    "properties": {
        "event": {"type": "string", "enum": ["resync", "items", "synced", "change"]},
        "data": {"type": "string", "description": "JSON."},
        "id": {"type": "string"},
        "retry": {"type": "integer"},
    },
}

_ITEM: Json = {
    "type": "object",
    "required": ["key"],
    "description": "value is JSON as it is, data is base64 of anything else.",
    "properties": {
        "key": {"type": "string"},
        "revision": {"type": "integer"},
        "content_type": {"type": "string", "enum": list(SERIALIZERS)},
        "value": {},
        "data": {"type": "string", "format": "byte"},
    },
}


def _object(*required: str, op: str = "") -> Json:
    """One key of a full state or of a transaction, as it is sent."""
    types = ["application/json"] if "value" in required else list(SERIALIZERS)
    properties: Json = {
        "op": {"type": "string", "enum": [op]},
        "key": _KEY["schema"],
        "value": {},
        "data": {"type": "string", "format": "byte"},
        "content_type": {"type": "string", "enum": types},
        "revision": {"description": "Ignored, so that a listing or an event can be sent back."},
    }
    wanted = {*required, "revision"} | ({"content_type"} if {"value", "data"} & {*required} else set())
    return {
        "type": "object",
        "required": list(required),
        "additionalProperties": False,
        "properties": {name: schema for name, schema in properties.items() if name in wanted},
    }


_SCHEMAS: Json = {
    "Item": _ITEM,
    "Listing": {
        "type": "object",
        "required": ["revision", "items", "next"],
        "properties": {
            "revision": {"type": "integer"},
            "items": {"type": "array", "items": {"$ref": "#/components/schemas/Item"}},
            "next": {"type": "string", "nullable": True, "description": "after= of the next page; null on the last."},
        },
    },
    "State": {
        "type": "object",
        "required": ["items"],
        "additionalProperties": False,
        "properties": {
            "items": {
                "type": "array",
                "items": {"oneOf": [_object("key", "value"), _object("key", "data")]},
            }
        },
    },
    "Transaction": {
        "type": "object",
        "required": ["changes"],
        "additionalProperties": False,
        "properties": {
            "changes": {
                "type": "array",
                "items": {
                    "oneOf": [
                        _object("op", "key", "value", op="Put"),
                        _object("op", "key", "data", op="Put"),
                        _object("op", "key", op="Delete"),
                    ]
                },
            }
        },
    },
    "Committed": {
        "type": "object",
        "required": ["revision", "ignored"],
        "properties": {
            "revision": {"type": "integer"},
            "ignored": {"type": "array", "items": {"type": "string"}, "description": "Deleted, and were not there."},
        },
    },
    "Written": {
        "type": "object",
        "required": ["key", "revision"],
        "properties": {"key": {"type": "string"}, "revision": {"type": "integer"}},
    },
    "Replaced": {
        "type": "object",
        "required": ["keys", "revision"],
        "properties": {"keys": {"type": "integer"}, "revision": {"type": "integer"}},
    },
    "Problem": {
        "type": "object",
        "description": "RFC 9457. errors: name of a subscriber to what it answered; silent: who did not answer.",
        "required": ["type", "title", "status", "detail"],
        "properties": {
            "type": {"type": "string", "enum": [URN + code for code in CODES]},
            "title": {"type": "string"},
            "status": {"type": "integer"},
            "detail": {"type": "string"},
            "errors": {"type": "object", "additionalProperties": {"type": "string"}},
            "silent": {"type": "array", "items": {"type": "string"}},
        },
    },
}


def _list() -> Json:
    return {
        "operationId": "list",
        "summary": "The pairs under a prefix, in the order of their keys, a page at a time",
        "parameters": [
            _query("prefix", {"type": "string", "maxLength": MAX_KEY}, "Plain text; all keys without it."),
            _query("after", {"type": "string", "maxLength": MAX_KEY}, "Only keys behind this one."),
            _query("limit", {"type": "integer", "minimum": 1, "maximum": 1000, "default": 100}, "Pairs on a page."),
            _query("values", {"type": "boolean", "default": True}, "false: without values."),
            _header("If-None-Match", "304 while nothing at all has changed."),
        ],
        "responses": {
            "200": _answer("A page; ETag is the revision of the whole state.", "Listing", _TAG),
            "304": {"description": "Nothing has changed.", "headers": _TAG},
            **_problems("bad-request", "unauthorized", "closed"),
        },
    }


def _resync() -> Json:
    return {
        "operationId": "resync",
        "summary": "Replace the whole state; what is not in it is gone. Every subscriber gets a RESYNC",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/State"}}},
        },
        "responses": {
            "200": _answer("Every subscriber has accepted it.", "Replaced"),
            **_problems(
                "bad-request",
                "unauthorized",
                "too-large",
                "unsupported-type",
                "refused",
                "internal",
                "closed",
                "unanswered",
            ),
        },
    }


def _transaction() -> Json:
    return {
        "operationId": "transaction",
        "summary": "Change several keys at once, and wait for their subscribers' answers",
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Transaction"}}},
        },
        "responses": {
            "200": _answer("Every subscriber has accepted it.", "Committed"),
            **_problems(
                "bad-request",
                "unauthorized",
                "unwatched",
                "too-large",
                "unsupported-type",
                "refused",
                "internal",
                "undelivered",
                "unanswered",
            ),
        },
    }


def _get() -> Json:
    return {
        "operationId": "get",
        "summary": "The value of a key, as it was put",
        "parameters": [_header("If-None-Match", "304 while the key has this revision.")],
        "responses": {
            "200": {"description": "The value.", "content": _VALUE, "headers": _TAG},
            "304": {"description": "It has not changed.", "headers": _TAG},
            **_problems("bad-request", "unauthorized", "no-such-key", "closed"),
        },
    }


def _put() -> Json:
    return {
        "operationId": "put",
        "summary": "Create or change a key, and wait for its subscribers' answers",
        "parameters": [
            _header("If-Match", "Only if the key has this revision; *: only if it is there."),
            _header("If-None-Match", "*: only if it is not there."),
        ],
        "requestBody": {"required": True, "content": _VALUE},
        "responses": {
            "200": _answer("Changed, and accepted by every subscriber.", "Written", _TAG),
            "201": _answer("Created, and accepted by every subscriber.", "Written", _TAG),
            **_problems(
                "bad-request",
                "unauthorized",
                "unwatched",
                "conflict",
                "too-large",
                "unsupported-type",
                "refused",
                "internal",
                "undelivered",
                "unanswered",
            ),
        },
    }


def _delete() -> Json:
    return {
        "operationId": "delete",
        "summary": "Delete a key, and wait for its subscribers' answers",
        "parameters": [_header("If-Match", "Only if the key has this revision.")],
        "responses": {
            "200": _answer("Deleted, and accepted by every subscriber.", "Written"),
            **_problems(
                "bad-request",
                "unauthorized",
                "no-such-key",
                "conflict",
                "refused",
                "internal",
                "undelivered",
                "unanswered",
            ),
        },
    }


def _events() -> Json:
    return {
        "operationId": "events",
        "summary": "A snapshot, then every transaction, as server-sent events",
        "description": "resync, items, synced, change; each id can be given back as Last-Event-ID to go on after it. "
        "When that is no longer possible, resync says why.",
        "parameters": [
            {
                **_query("prefix", {"type": "array", "items": {"type": "string", "maxLength": MAX_KEY}}, "Which keys."),
                "explode": True,
            },
            _query("follow", {"type": "boolean", "default": True}, "false: end when all there is was sent."),
            _query("heartbeat", {"type": "number", "minimum": 0.1, "maximum": 60}, "Seconds between signs of life."),
            _header("Last-Event-ID", "Go on after this event."),
        ],
        "responses": {
            "200": {"description": "The stream.", "content": {"text/event-stream": {"schema": _EVENT}}},
            **_problems("bad-request", "unauthorized", "overloaded"),
        },
    }


def _problems(*codes: str) -> Json:
    # Several codes may share a status: the document describes each status once, by its first code.
    found: Json = {}
    for code in codes:
        found.setdefault(str(CODES[code][0]), {"$ref": f"#/components/responses/{code}"})
    return found


def _problem(code: str) -> Json:
    schema = {"$ref": "#/components/schemas/Problem"}
    described: Json = {"description": CODES[code][1], "content": {PROBLEM_TYPE: {"schema": schema}}}
    if code == "unauthorized":
        described["headers"] = {"WWW-Authenticate": {"schema": {"type": "string"}}}
    return described


def _answer(description: str, schema: str, headers: Json | None = None) -> Json:
    content = {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}
    return {"description": description, "content": content, **({"headers": headers} if headers else {})}


def _query(name: str, schema: Json, description: str) -> Json:
    return {"name": name, "in": "query", "required": False, "schema": schema, "description": description}


def _header(name: str, description: str) -> Json:
    return {"name": name, "in": "header", "required": False, "schema": {"type": "string"}, "description": description}
