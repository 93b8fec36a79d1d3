"""YAML text with the values of JSON.

Source: contract C19.
"""

from __future__ import annotations

import math
import re
from functools import lru_cache
from typing import Any

from datasync.errors import MissingExtraError
from datasync.jsontext import (
    DUPLICATE,
    INVALID,
    OUT_OF_RANGE,
    TOO_DEEP,
    WRONG_TYPE,
    DecodeFault,
    decode,
    read_json,
    write_json,
)

#: Columns of a line; none is folded.
_WIDTH = 2**31 - 1
#: What the name of a problem may quote: any other quotation can be a piece of a value.
_SIGN = re.compile(r"'(?:[][{}?:>,-]|<(?:document|stream|block) (?:start|end)>)'")
_QUOTE = re.compile("['\"]")


class YamlCodec:
    """YAML 1.1 as PyYAML's safe loader reads it, restricted to the values of JSON. It needs the extra ``yaml``.

    Names must be text, dates are read as text, and an alias is an error: a few lines of them can expand to gigabytes.

    With *json_words*, a word without quotes is text unless JSON has the same one, or it is ``~``, ``True``, ``TRUE``,
    ``False`` or ``FALSE``: the country ``NO``, the version ``1_0`` and the time ``12:30`` stay as they are.
    """

    name = "YAML"

    def __init__(self, *, json_words: bool = False) -> None:
        self._json_words = json_words

    def encode(self, value: Any) -> bytes:
        """Return *value* as YAML. Raises ``InvalidArgumentError`` as the JSON codec does, ``MissingExtraError``."""
        yaml, _, dumper = _yaml()
        value = read_json(write_json(value))  # raises for what is not a value of JSON, and knows no subclasses
        text: str = yaml.dump(value, Dumper=dumper, allow_unicode=True, default_flow_style=False, width=_WIDTH)
        return text.encode()

    def decode(self, data: bytes) -> Any:
        """Return the document. Raises ``DecodeError``, ``MissingExtraError``."""
        yaml, loader, _ = _yaml(self._json_words)
        text = None
        try:
            text = decode(data)
            if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, loader)):
                raise DecodeFault(INVALID, "an alias")
            return yaml.load(text, loader)
        except DecodeFault as fault:
            failure = fault
        except RecursionError:
            failure = DecodeFault(TOO_DEEP)
        except Exception as error:  # a wrong tag makes PyYAML raise KeyError, IndexError and TypeError too
            failure = DecodeFault(INVALID, _reason(error), _offset(error, text))
        raise failure.error("YAML", text=text)  # outside the except block: PyYAML's error quotes the text


def _reason(error: Exception) -> str:
    """Return PyYAML's name of the problem; empty if there is none, or it quotes more than YAML's own signs."""
    problem = getattr(error, "problem", None)
    if not isinstance(problem, str) or _QUOTE.search(_SIGN.sub("", problem)):
        return ""
    return problem.removeprefix("but ")  # of a sentence whose beginning is left out


def _offset(error: Exception, text: str | None) -> int:
    mark = getattr(error, "problem_mark", None)
    lines = (text or "").split("\n")
    if mark is None or mark.line >= len(lines):
        return 0
    return sum(len(line) + 1 for line in lines[: mark.line]) + int(mark.column)


#: What a word without quotes means where only the words of JSON have a meaning: tag, pattern, first characters.
_JSON_WORDS = (
    ("null", r"(?:~|null|)\Z", ["~", "n", ""]),
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", list("tTfF")),
    ("int", r"-?(?:0|[1-9][0-9]*)\Z", list("-0123456789")),
    ("float", r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][-+]?[0-9]+)?\Z", list("-0123456789")),
)


@lru_cache(2)
def _yaml(json_words: bool = False) -> tuple[Any, Any, Any]:
    """Return PyYAML, and the loader and dumper of this codec."""
    try:
        import yaml
    except ImportError:
        raise MissingExtraError("yaml", "PyYAML") from None
    fast: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    base: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class JsonLoader(fast):  # type: ignore[misc]
        """Makes values of JSON only."""

        yaml_implicit_resolvers = {
            first: [(tag, pattern) for tag, pattern in found if not tag.endswith((":timestamp", ":merge", ":value"))]
            for first, found in fast.yaml_implicit_resolvers.items()
        }
        yaml_constructors = {
            tag: construct
            for tag, construct in fast.yaml_constructors.items()
            if tag is None or tag.rpartition(":")[2] in ("null", "bool", "int", "float", "str", "seq", "map")
        }

        def construct_mapping(self, node: Any, deep: bool = False) -> dict[str, Any]:
            found: dict[str, Any] = {}
            for key_node, value_node in node.value:
                name = self.construct_object(key_node, deep=True)
                if not isinstance(name, str):
                    raise _fault(WRONG_TYPE, "a name must be text", key_node)
                if name in found:
                    raise _fault(DUPLICATE, "the name occurs twice", key_node)
                found[name] = self.construct_object(value_node, deep=deep)
            return found

        def construct_json_float(self, node: Any) -> float:
            number: float = self.construct_yaml_float(node)
            if not math.isfinite(number):
                raise _fault(OUT_OF_RANGE, "a number that is not finite", node)
            return number

        def construct_json_map(self, node: Any) -> Any:
            data: dict[str, Any] = {}
            yield data
            data.update(self.construct_mapping(node))

    class PlainDumper(base):  # type: ignore[misc]
        """Writes an object that occurs twice twice."""

        def ignore_aliases(self, data: Any) -> bool:
            return True

    if json_words:
        JsonLoader.yaml_implicit_resolvers = {}
        for name, pattern, first in _JSON_WORDS:
            JsonLoader.add_implicit_resolver(f"tag:yaml.org,2002:{name}", re.compile(pattern), first)
    JsonLoader.add_constructor("tag:yaml.org,2002:float", JsonLoader.construct_json_float)
    JsonLoader.add_constructor("tag:yaml.org,2002:map", JsonLoader.construct_json_map)
    return yaml, JsonLoader, PlainDumper


def _fault(kind: str, detail: str, node: Any) -> DecodeFault:
    return DecodeFault(kind, detail, node.start_mark.index)


#: YAML text with the values of JSON.
yaml = YamlCodec()
