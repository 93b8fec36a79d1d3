"""``datasync txn``."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import click

from datasync.cli.arguments import positionals
from datasync.cli.output import note, output_option, write_records
from datasync.cli.targets import open_store
from datasync.cli.verbs.writing import read_input
from datasync.errors import InvalidArgumentError
from datasync.keyval.txn import BytesTxn
from datasync.options import with_ttl
from datasync.tools.records import pair_of

#: The members of the document.
PARTS = ("if", "then", "else")
_SHAPE = """{"if": [{"key": "a", "value": "1"}, {"key": "b", "absent": true}, {"key": "c", "revision": 7}],
 "then": [{"put": "a", "value": "2"}, {"delete": "b"}], "else": [{"put": "conflict", "value": "1"}]}"""


@click.command()
@positionals("URL")
@click.option("-f", "--file", "path", required=True, metavar="FILE", help="Read the transaction from FILE; - is stdin.")
@output_option("value", "json")
def txn(url: str, path: str, output: str) -> int:
    """Write several keys, all or none, if all conditions hold.

    \b
    FILE is a JSON object; "if" and "else" may be left out:
      {"if": [{"key": "a", "value": "1"}, {"key": "b", "absent": true},
              {"key": "c", "revision": 7}],
       "then": [{"put": "a", "value": "2", "ttl": 60}, {"delete": "b"}],
       "else": [{"put": "conflict", "value": "1"}]}
    A value that is not text is in base64, with "encoding": "base64".

    Exit code 1: a condition did not hold, and "else" was written, if there is one.

    \b
    Example: echo '{"then": [{"put": "a", "value": "1"}, {"delete": "b"}]}' | datasync txn sqlite:app.db -f -
    """
    document = _read(read_input(path))
    with open_store(url, create=True) as store:
        result = _build(store.new_broker().new_txn(), document).commit()
    branch = "then" if result.succeeded else "else"
    if output == "json":
        write_records([{"succeeded": result.succeeded, "branch": branch, "revision": result.revision}], output)
    elif not result.succeeded:
        written = "the operations of else were written" if document.get("else") else "nothing was written"
        note(f"{store.name}: a condition did not hold: {written}")
    return 0 if result.succeeded else 1


def _read(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except json.JSONDecodeError as error:
        message = f"the transaction is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg})"
        raise InvalidArgumentError(message) from None
    except (ValueError, RecursionError):
        raise InvalidArgumentError("the transaction is not valid JSON: not UTF-8, or nested too deep") from None
    if not isinstance(document, dict) or not all(isinstance(document.get(part, []), list) for part in PARTS):
        raise InvalidArgumentError(f"a transaction must look like this:\n{_SHAPE}")
    unknown = next((name for name in document if name not in PARTS), None)
    if unknown is not None:
        raise InvalidArgumentError(f"a transaction has no {unknown!r}: it has if, then and else")
    if not document.get("then") and not document.get("else"):
        raise InvalidArgumentError("the transaction writes nothing: it needs then")
    return document


def _build(transaction: BytesTxn, document: Mapping[str, Any]) -> BytesTxn:
    for number, item in enumerate(document.get("if", []), 1):
        _add_condition(transaction, item, f"item {number} of if")
    for part in ("then", "else"):
        if part == "else" and document.get(part):
            transaction.otherwise()
        keys: set[str] = set()
        for number, item in enumerate(document.get(part, []), 1):
            key = _add_operation(transaction, item, f"item {number} of {part}")
            if key in keys:
                raise InvalidArgumentError(f"item {number} of {part} repeats the key {key!r}")
            keys.add(key)
    return transaction


def _add_condition(transaction: BytesTxn, item: Any, place: str) -> None:
    kinds: dict[str, Callable[[], object]] = {
        "value": lambda: transaction.if_value(item["key"], pair_of(item, place).value),
        "absent": lambda: transaction.if_absent(item["key"]),
        "revision": lambda: transaction.if_revision(item["key"], item["revision"]),
    }
    given = [kind for kind in kinds if isinstance(item, dict) and kind in item]
    if len(given) != 1 or not isinstance(item.get("key"), str) or item.get("absent", True) is not True:
        raise InvalidArgumentError(f'{place} must have a key, and one of value, revision and "absent": true')
    _check_members(item, {"key", "encoding", *given}, place)
    kinds[given[0]]()


def _add_operation(transaction: BytesTxn, item: Any, place: str) -> str:
    """Add the operation that *item* describes, and return its key."""
    kind = next((kind for kind in ("put", "delete") if isinstance(item, dict) and kind in item), None)
    if kind is None or not isinstance(item[kind], str):
        raise InvalidArgumentError(f"{place} must have put, with a key and a value, or delete, with a key")
    key: str = item[kind]
    if kind == "delete":
        _check_members(item, {"delete"}, place)
        transaction.delete(key)
        return key
    _check_members(item, {"put", "value", "encoding", "ttl"}, place)
    ttl = item.get("ttl")
    pair = pair_of({"key": key, "value": item.get("value"), "encoding": item.get("encoding")}, place)
    transaction.put(key, pair.value, *(() if ttl is None else (with_ttl(ttl),)))
    return key


def _check_members(item: Mapping[str, Any], known: set[str], place: str) -> None:
    unknown = next((name for name in item if name not in known), None)
    if unknown is not None:
        raise InvalidArgumentError(f"{place} has no {unknown!r}")
