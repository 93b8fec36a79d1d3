"""The OpenAPI document and the application are held against each other, by requests that nobody thought of."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis import GenerationMode
from schemathesis.generation.meta import ParameterLocation
from schemathesis.specs.openapi.checks import negative_data_rejection
from schemathesis.transport.serialization import Binary
from werkzeug.test import Client as WebClient

from datasync.restsync import Adapter, Application, wsgi_app
from tests.restsync.support import Subscriber

#: Requests per operation. Words of the document, such as "refused", come as keys too.
EXAMPLES = 100 if os.environ.get("CI") else 40


def make(adapter: Adapter) -> Application:
    return wsgi_app(adapter, max_body=10_000, max_resync=100_000)


#: The application of the test that runs; the document is read once, from one that nobody else uses.
current = [make(Adapter())]
schema = schemathesis.openapi.from_wsgi("/openapi.json", lambda *arguments: current[0](*arguments))

# What is right as a document may still be a condition that does not hold, or a key that stands twice.
schema.config.checks.positive_data_acceptance.expected_statuses = ["2xx", "3xx", "400", "404", "412"]


def is_right(case: Any, sent: bytes | str | None) -> bool:
    """Return True if the body *sent* is JSON that the document allows, and nothing beside it was made wrong.

    The text decides, not ``case.body``: that has strings of a class of schemathesis's own, which no validator takes.
    """
    parts = case.meta.components if case.meta else {}
    wrong = [part for part, info in parts.items() if info.mode is GenerationMode.NEGATIVE]
    if wrong != [ParameterLocation.BODY] or case.path != "/keys" or case.method == "GET":
        return False
    name = {"PUT": "State", "PATCH": "Transaction"}[case.method]
    document = schema.raw_schema["components"]
    wanted = {"$ref": f"#/components/schemas/{name}", "components": document}
    try:
        body = json.loads(sent or "")
    except ValueError:  # not what JSON can say
        return False
    validator = jsonschema_rs.validator_for(wanted, formats={"byte": is_base64}, validate_formats=True)
    return bool(validator.is_valid(body))


def is_base64(text: str) -> bool:
    """Return True for what ``format: byte`` means."""
    try:
        base64.b64decode(text, validate=True)
    except ValueError:
        return False
    return True


@pytest.fixture
def accepting(adapter: Adapter) -> Iterator[Subscriber]:
    """Somebody who accepts everything, behind an application of its own."""
    current[0] = make(adapter)
    with Subscriber(adapter, "", willing=True) as subscriber:
        yield subscriber


@schema.parametrize()
@settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore")
def test_nothing_that_is_asked_is_answered_otherwise_than_the_document_says(case: Any, accepting: Subscriber) -> None:
    if case.path == "/events" and (case.query or {}).get("follow", True) in (True, "true"):
        # A stream that is followed never ends, and the client of this test waits for the end.
        case.query = {**(case.query or {}), "follow": "false"}
    response = case.call()
    # A change of the document's schema may leave a body that is right, such as an empty list of what is wrong.
    right = is_right(case, response.request.body)
    case.validate_response(response, excluded_checks=[negative_data_rejection] if right else [])


def test_what_was_sent_decides_if_a_body_is_right_and_not_the_object_it_was_made_of() -> None:
    # given base64 as schemathesis has it / when its text, or the key, is made wrong
    operation = schema["/keys"]["PATCH"]
    meta = SimpleNamespace(components={ParameterLocation.BODY: SimpleNamespace(mode=GenerationMode.NEGATIVE)})
    body = {"changes": [{"op": "Put", "key": "a", "data": Binary(b"YQ==")}]}
    case = SimpleNamespace(meta=meta, path=operation.path, method="PATCH", body=body)

    def sent(**item: str) -> str:
        return json.dumps({"changes": [{"op": "Put", "key": "a", "data": "YQ==", **item}]})

    # then it is right as long as nothing in it is wrong
    assert is_right(case, sent())
    assert not is_right(case, sent(data="Y"))
    assert not is_right(case, sent(key="k" * 1025))
    assert not is_right(case, "{")


def test_the_document_names_every_status_that_the_code_knows() -> None:
    with Adapter() as adapter:
        document = WebClient(wsgi_app(adapter)).get("/openapi.json").json
    assert document is not None
    assert document["openapi"].startswith("3.")
    kinds = document["components"]["schemas"]["Problem"]["properties"]["type"]["enum"]
    assert "urn:datasync:refused" in kinds
    assert {path: sorted(set(methods) - {"parameters"}) for path, methods in document["paths"].items()} == {
        "/keys": ["get", "patch", "put"],
        "/keys/{key}": ["delete", "get", "put"],
        "/escaped/{key}": ["delete", "get", "put"],
        "/events": ["get"],
        "/status": ["get"],
        "/release": ["post"],
    }
    with Adapter() as adapter:
        without = WebClient(wsgi_app(adapter, page=False)).get("/openapi.json").json
    assert without is not None
    assert set(document["paths"]) - set(without["paths"]) == {"/status", "/release"}
