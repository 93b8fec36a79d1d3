"""Objects of declared types: C19."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import logging
import math
import subprocess
import sys
import threading
from pathlib import Path
from typing import Annotated, Any, Literal, NewType, Optional

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from datasync import codecs
from datasync.codecs.unknown import MAX_NAMES, OTHERS
from datasync.errors import DecodeError, InvalidArgumentError, MissingExtraError
from tests.codecs.shapes import HOSTS, DataHost, DataPort, DictHost, ModelHost, StructHost

ROOT = Path(__file__).resolve().parents[2]
SECRET = "s3cret"
EVERY_KIND = pytest.mark.parametrize(("host", "port"), HOSTS, ids=[host.__name__ for host, _ in HOSTS])

ports = st.fixed_dictionaries({"number": st.integers(), "name": st.text(max_size=5)})
hosts = st.fixed_dictionaries(
    {
        "name": st.text(max_size=8),
        "mtu": st.integers(),
        "load": st.floats(allow_nan=False, allow_infinity=False),
        "tags": st.dictionaries(st.text(max_size=5), st.integers(-(2**70), 2**70), max_size=3),
        "note": st.none() | st.text(max_size=5),
    }
)


def make(host: Any, port: Any, fields: dict[str, Any], inner: list[dict[str, Any]]) -> Any:
    return host(**fields, ports=[port(**one) for one in inner])


def full(host: Any, port: Any, **other: Any) -> Any:
    fields = {"name": "a", "mtu": 9000, "load": 0.5, "tags": {"x": 1}, "note": None, **other}
    return make(host, port, fields, [{"number": 80, "name": "http"}])


@given(hosts, st.lists(ports, max_size=3))
def test_c19_every_object_comes_back_from_json_and_yaml(fields: dict[str, Any], inner: list[dict[str, Any]]) -> None:
    for host, port in HOSTS:
        value = make(host, port, fields, inner)
        for form in (codecs.json, codecs.yaml):
            codec = codecs.typed(host, form=form)
            back = codec.decode(codec.encode(value))
            assert back == value
            assert type(back) is type(value)
            assert not codec.unknown_fields


@EVERY_KIND
def test_c19_every_kind_writes_the_same_json(host: Any, port: Any) -> None:
    assert codecs.json.decode(codecs.typed(host).encode(full(host, port))) == {
        "name": "a",
        "mtu": 9000,
        "load": 0.5,
        "ports": [{"number": 80, "name": "http"}],
        "tags": {"x": 1},
        "note": None,
    }


@EVERY_KIND
@pytest.mark.parametrize(
    ("data", "kind", "path"),
    [
        (b'{"name":"a","mtu":"s3cret","load":0,"ports":[],"tags":{},"note":null}', "wrong type", "mtu"),
        (
            b'{"name":"a","mtu":1,"load":0,"tags":{},"note":null,\n"ports":[{"number":1,"name":""},{"number":"s3cret"}]}',
            "wrong type",
            "ports[1].number",
        ),
        (b'{"mtu":1,"load":0,"ports":[],"tags":{},"note":null,"x":"s3cret"}', "missing", "name"),
        (
            b'{"name":"a","mtu":1,"load":0,"ports":[{"name":"s3cret"}],"tags":{},"note":null}',
            "missing",
            "ports[0].number",
        ),
        (b'["s3cret"]', "wrong type", ""),
        (b'"s3cret"', "wrong type", ""),
        (b'{"name":"s3cret"', "invalid", ""),
        (b'{"name":"s3cret","name":"b","mtu":1,"load":0,"ports":[],"tags":{},"note":null}', "duplicate", "name"),
        (b'{"name":"s3cret","mtu":1,"load":NaN,"ports":[],"tags":{},"note":null}', "invalid", ""),
        (b'{"name":"s3cret","mtu":1,"load":1e400,"ports":[],"tags":{},"note":null}', "out of range", None),
        (b'{"name":"s3cret","mtu":1.5,"load":1,"ports":[],"tags":{},"note":null}', "wrong type", "mtu"),
        (b'\xef\xbb\xbf{"name":"s3cret"}', "invalid", ""),
        (b'{"name":"s3cret","mtu":1,"load":1,"ports":' + b"[" * 200_000, "too deep", None),
        (b"", "invalid", ""),
    ],
)
def test_c19_a_wrong_value_is_a_decode_error_that_says_where_and_never_what(
    host: Any, port: Any, data: bytes, kind: str, path: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(DecodeError) as caught:
        codecs.typed(host).decode(data)
    error = caught.value
    assert (error.form, error.kind) == ("JSON", kind)
    assert path is None or error.path == path
    assert error.line >= 1
    assert error.column >= 1
    assert SECRET not in str(error) + caplog.text
    assert (error.__cause__, error.__context__) == (None, None)


@EVERY_KIND
def test_c19_the_entry_of_a_map_has_its_position_because_its_name_is_a_value(host: Any, port: Any) -> None:
    data = b'{"name":"a","mtu":1,"load":0,"ports":[],"tags":{"a":1,"s3cret":"x"},"note":null}'
    with pytest.raises(DecodeError) as caught:
        codecs.typed(host).decode(data)
    assert caught.value.path in ("tags", "tags[1]")
    assert SECRET not in str(caught.value)


@EVERY_KIND
def test_c19_a_reader_ignores_unknown_fields_counts_them_and_logs_each_name_once(
    host: Any, port: Any, caplog: pytest.LogCaptureFixture
) -> None:
    # given objects that a newer program wrote
    data = (
        b'{"name":"a","mtu":1,"load":0.5,"tags":{"free":1},"note":null,"colour":"s3cret",'
        b'"ports":[{"number":1,"name":"","speed":10},{"number":2,"name":"","speed":{"s3cret":1}}]}'
    )
    codec = codecs.typed(host)
    # when they are read twice
    for _ in range(2):
        value = codec.decode(data)
    # then the rest is there, and both names are counted and logged once
    assert (value["name"] if isinstance(value, dict) else value.name) == "a"
    assert codec.unknown_fields == {"colour": 2, "ports[].speed": 4}
    assert len(caplog.records) == 2
    assert SECRET not in caplog.text
    # and a strict reader says which field it is
    with pytest.raises(DecodeError, match="field colour") as caught:
        codecs.typed(host, unknown="error").decode(data)
    assert (caught.value.kind, caught.value.path) == ("unknown field", "colour")
    assert SECRET not in str(caught.value)


@EVERY_KIND
@pytest.mark.parametrize(
    "wrong",
    [
        {"name": 5},
        {"mtu": SECRET},
        {"load": math.nan},
        {"load": math.inf},
        {"tags": {"x": SECRET}},
        {"note": 1},
        {"mtu": 1.5},
    ],
)
def test_c19_a_writer_refuses_what_its_reader_would_refuse(host: Any, port: Any, wrong: dict[str, Any]) -> None:
    value = full(host, port) if host is ModelHost else full(host, port, **wrong)
    if host is ModelHost:  # which validates when it is made, but not when it is changed
        for name, item in wrong.items():
            setattr(value, name, item)
    with pytest.raises(InvalidArgumentError, match="not a valid") as caught:
        codecs.typed(host).encode(value)
    assert SECRET not in str(caught.value)
    assert (caught.value.__cause__, caught.value.__context__) == (None, None)


@EVERY_KIND
def test_c19_a_writer_takes_objects_of_its_type_only(host: Any, port: Any) -> None:
    for wrong in (None, "text", b"bytes", 1, object()):
        with pytest.raises(InvalidArgumentError):
            codecs.typed(host).encode(wrong)


@EVERY_KIND
def test_c19_whole_numbers_are_exact_and_never_become_floats_in_silence(host: Any, port: Any) -> None:
    codec = codecs.typed(host)
    for number in (2**53 + 1, -(2**63) - 1, 10**30):
        back = codec.decode(codec.encode(full(host, port, mtu=number)))
        assert (back["mtu"] if host is DictHost else back.mtu) == number
    value = full(host, port)
    if host is DictHost:
        value["load"] = 2**53 + 1
    else:
        value.load = 2**53 + 1
    with pytest.raises(InvalidArgumentError):
        codec.encode(value)


@dataclasses.dataclass
class Anything:
    value: Any = None
    more: dict[str, Any] = dataclasses.field(default_factory=dict)


def test_c19_a_field_of_any_type_holds_any_json_exactly() -> None:
    codec = codecs.typed(Anything)
    for value in (2**64, 10**40, {"unknown": [1, {"x": 2.5}]}, None, "\u2028"):
        assert codec.decode(codec.encode(Anything(value, {"k": value}))) == Anything(value, {"k": value})
    assert codec.decode(b'{"value": {"free": 1}, "more": {"free": {"x": 1}}}').value == {"free": 1}
    assert not codec.unknown_fields
    for wrong in (math.nan, object(), "\ud800"):
        with pytest.raises(InvalidArgumentError):
            codec.encode(Anything(wrong))


class Colour(enum.Enum):
    RED = "red"


Label = NewType("Label", str)


@dataclasses.dataclass
class Rich:
    colour: Colour = Colour.RED
    since: datetime.datetime | None = None
    label: Label = Label("")
    inner: Optional[DataPort] = None  # noqa: UP045
    level: Annotated[int, msgspec.Meta(ge=1)] = 1
    choice: Literal["a", "b"] = "a"
    pairs: list[tuple[str, DataPort]] = dataclasses.field(default_factory=list)
    others: dict[str, DataPort] = dataclasses.field(default_factory=dict)
    names: set[str] = dataclasses.field(default_factory=set)
    next: Rich | None = None


def test_c19_enums_dates_unions_and_nested_types_come_back() -> None:
    since = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.timezone.utc)
    value = Rich(
        Colour.RED, since, Label("x"), DataPort(1), 2, "b", [("a", DataPort(2))], {"b": DataPort(3)}, {"x", "y"}
    )
    value.next = Rich()
    for form in (codecs.json, codecs.yaml):
        codec = codecs.typed(Rich, form=form)
        assert codec.decode(codec.encode(value)) == value


@pytest.mark.parametrize(
    ("data", "kind", "path"),
    [
        (b'{"colour":"s3cret"}', "out of range", "colour"),
        (b'{"since":"s3cret"}', "wrong type", "since"),
        (b'{"level":0}', "out of range", "level"),
        (b'{"choice":"s3cret"}', "out of range", "choice"),
        (b'{"inner":{}}', "missing", "inner.number"),
        (b'{"next":{"next":{"level":"s3cret"}}}', "wrong type", "next.next.level"),
        (b'{"pairs":[["a",{"number":"s3cret"}]]}', "wrong type", "pairs[0][1].number"),
    ],
)
def test_c19_a_value_out_of_range_is_named_by_its_field(data: bytes, kind: str, path: str) -> None:
    with pytest.raises(DecodeError) as caught:
        codecs.typed(Rich).decode(data)
    assert (caught.value.kind, caught.value.path) == (kind, path)
    assert SECRET not in str(caught.value)


def test_c19_unknown_fields_are_found_in_maps_tuples_unions_and_recursive_types() -> None:
    codec = codecs.typed(Rich)
    codec.decode(
        b'{"inner":{"number":1,"a":1},"pairs":[["x",{"number":1,"b":1}]],"others":{"s3cret":{"number":1,"c":1}},'
        b'"next":{"next":{"d":1}}}'
    )
    assert codec.unknown_fields == {"inner.a": 1, "pairs[][].b": 1, "others{}.c": 1, "next.next.d": 1}


class Tagged(msgspec.Struct, tag="one", rename="camel"):
    long_name: int = 0


class Other(msgspec.Struct, tag="two"):
    x: int = 0


class Aliased(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(extra="allow")
    number: int = pydantic.Field(0, alias="the-number")
    secret: pydantic.SecretStr | None = None


class Checked(pydantic.BaseModel):
    name: str = ""

    @pydantic.field_validator("name")
    @classmethod
    def never(cls, name: str) -> str:
        if name:
            raise ValueError(f"not {name}")
        return name


class Infinite(pydantic.BaseModel):
    model_config = pydantic.ConfigDict(ser_json_inf_nan="constants")
    x: float = 0.0


def test_c19_renamed_fields_tags_and_lists_of_objects_work() -> None:
    either: Any = codecs.typed(list[Tagged | Other])  # type: ignore[arg-type]
    value = [Tagged(1), Other(2)]
    assert either.decode(either.encode(value)) == value
    either.decode(b'[{"type":"one","longName":1,"new":2}]')
    assert either.unknown_fields == {"[].new": 1}
    aliased = codecs.typed(Aliased)
    assert aliased.decode(b'{"the-number":1,"more":2}') == Aliased(**{"the-number": 1, "more": 2})
    assert aliased.decode(aliased.encode(Aliased(**{"the-number": 1}))).number == 1
    assert not aliased.unknown_fields


def test_c19_a_secret_that_a_model_hides_is_not_written_as_stars() -> None:
    with pytest.raises(InvalidArgumentError, match="would not be read back equal"):
        codecs.typed(Aliased).encode(Aliased(secret=pydantic.SecretStr(SECRET)))


def test_c19_the_words_of_a_validator_are_not_quoted() -> None:
    with pytest.raises(DecodeError) as caught:
        codecs.typed(Checked).decode(b'{"name":"s3cret"}')
    assert (caught.value.kind, caught.value.path) == ("out of range", "name")
    assert SECRET not in str(caught.value)


def test_c19_infinity_is_refused_even_where_a_model_allows_it() -> None:
    codec = codecs.typed(Infinite)
    for data in (b'{"x":Infinity}', b'{"x":NaN}', b'{"x":1e999}'):
        with pytest.raises(DecodeError):
            codec.decode(data)
    for value in (math.inf, math.nan):
        with pytest.raises(InvalidArgumentError):
            codec.encode(Infinite(x=value))


@dataclasses.dataclass
class Picky:
    name: str

    def __post_init__(self) -> None:
        raise (KeyError if self.name == "key" else ValueError)(SECRET)


def test_c19_an_error_of_the_type_itself_is_a_decode_error_without_its_text() -> None:
    for data in (b'{"name":"key"}', b'{"name":"value"}'):
        with pytest.raises(DecodeError) as caught:
            codecs.typed(Picky).decode(data)
        assert caught.value.kind == "out of range"
        assert SECRET not in str(caught.value)
        assert (caught.value.__cause__, caught.value.__context__) == (None, None)


def test_c19_a_yaml_value_that_does_not_fit_says_yaml() -> None:
    codec = codecs.typed(DataHost, form=codecs.yaml)
    assert codec.decode(b"name: a\nmtu: 2\n") == DataHost("a", 2)
    with pytest.raises(DecodeError) as caught:
        codec.decode(b"name: a\nports:\n- number: s3cret\n")
    assert (caught.value.form, caught.value.kind, caught.value.path) == ("YAML", "wrong type", "ports[0].number")
    assert SECRET not in str(caught.value)


def test_c19_the_number_of_names_that_are_counted_is_bounded() -> None:
    codec = codecs.typed(DataHost)
    for number in range(MAX_NAMES + 50):
        codec.decode(b'{"name":"a","new%d":1}' % number)
    assert len(codec.unknown_fields) == MAX_NAMES + 1
    assert codec.unknown_fields[OTHERS] == 50
    # what is not a name may be a value
    codec = codecs.typed(DataHost)
    codec.decode(b'{"name":"a","my s3cret":1}')
    assert codec.unknown_fields == {"(a name)": 1}


def test_c19_several_threads_lose_no_count() -> None:
    codec = codecs.typed(StructHost)
    threads = [
        threading.Thread(target=lambda: [codec.decode(b'{"name":"a","new":1}') for _ in range(500)]) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert codec.unknown_fields == {"new": 2000}


def test_c19_what_cannot_be_converted_is_said_when_the_codec_is_made() -> None:
    for wrong in (DataHost("a"), "DataHost", threading.Lock, threading.Thread, DataPort | DataHost):
        with pytest.raises(InvalidArgumentError):
            codecs.typed(wrong)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError, match='"ignore" or "error"'):
        codecs.typed(DataHost, unknown="drop")
    with pytest.raises(InvalidArgumentError, match="a codec is"):
        codecs.typed(DataHost, form=codecs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("library", "extra", "use"),
    [
        ("msgspec", "msgspec", "codecs.typed(D)"),
        ("yaml", "yaml", "codecs.yaml.encode(1)"),
        ("pydantic", "pydantic", "codecs.typed(M)"),
    ],
)
def test_c19_a_missing_library_is_an_error_that_names_its_extra(library: str, extra: str, use: str) -> None:
    program = f"""
import dataclasses, sys
D = dataclasses.make_dataclass("D", [("x", int)])
class M: __pydantic_core_schema__ = None
sys.modules[{library!r}] = None
from datasync import codecs
codecs.json.encode(1)
try:
    {use}
except ImportError as error:
    print(type(error).__name__, error.extra)
"""
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.stdout.split() == [MissingExtraError.__name__, extra], done.stderr
