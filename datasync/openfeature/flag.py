"""A flag as it is stored, and the value that it has for a caller.

A stored value is the value of the flag itself, or an object with variants::

    {"state": "ENABLED", "variants": {"on": true, "off": false}, "defaultVariant": "off",
     "rules": [{"if": {"country": ["AT", "DE"]}, "variant": "on"},
               {"split": {"on": 10, "off": 90}}]}

The first rule that fits decides; ``defaultVariant`` where none does. A rule fits when each attribute under ``if`` is
the value there, or one of those in a list there. ``split`` shares the callers out by their targeting key, in proportion
to the weights, and always in the same way. The names but ``rules`` are those of flagd; its ``targeting`` is not read.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from openfeature.evaluation_context import EvaluationContext
from openfeature.exception import ParseError, TargetingKeyMissingError
from openfeature.flag_evaluation import FlagResolutionDetails, Reason

#: Steps into which a split shares the callers.
STEPS = 1 << 64


def evaluate(key: str, stored: Any, default: Any, context: EvaluationContext) -> FlagResolutionDetails[Any]:
    """Return the value of the flag *key* in *stored*; *default* where it is disabled.

    Raises:
      ParseError: *stored* is not valid. The text names the member, never a value.
      TargetingKeyMissingError: The callers are to be shared out, and this one has no targeting key.
    """
    if not isinstance(stored, Mapping) or "variants" not in stored:
        return FlagResolutionDetails(stored, reason=Reason.STATIC)
    if stored.get("state", "ENABLED") != "ENABLED":
        return FlagResolutionDetails(default, reason=Reason.DISABLED)
    if stored.get("targeting"):
        raise ParseError(f"the flag {key!r} has the targeting of flagd, which is not evaluated here: write rules")
    variants, rules = stored["variants"], stored.get("rules", ())
    if not isinstance(variants, Mapping) or not isinstance(rules, (list, tuple)):
        raise ParseError(f"the flag {key!r}: variants must be an object, and rules a list")
    name, reason = stored.get("defaultVariant"), Reason.DEFAULT if rules else Reason.STATIC
    for rule in rules:
        if not isinstance(rule, Mapping) or ("variant" in rule) == ("split" in rule):
            raise ParseError(f"the flag {key!r}: a rule must be an object with either variant or split")
        if _fits(key, rule.get("if", {}), context):
            split = "split" in rule
            name = _share(key, rule["split"], context) if split else rule["variant"]
            reason = Reason.SPLIT if split else Reason.TARGETING_MATCH
            break
    if name is None:
        return FlagResolutionDetails(default, reason=Reason.DEFAULT)
    if not isinstance(name, str) or name not in variants:
        raise ParseError(f"the flag {key!r} chooses a variant that it does not have")
    return FlagResolutionDetails(variants[name], variant=name, reason=reason)


def _fits(key: str, wanted: Any, context: EvaluationContext) -> bool:
    if not isinstance(wanted, Mapping):
        raise ParseError(f"the flag {key!r}: if must be an object of attributes")
    for name, values in wanted.items():
        has = context.targeting_key if name == "targetingKey" else context.attributes.get(name)
        if has is None or has not in (values if isinstance(values, (list, tuple)) else (values,)):
            return False
    return True


def _share(key: str, weights: Any, context: EvaluationContext) -> str:
    """Return the variant for the caller; the flag is part of the hash, so that two flags share them out otherwise."""
    if not isinstance(weights, Mapping) or not weights or not all(_is_weight(one) for one in weights.values()):
        raise ParseError(f"the flag {key!r}: split must be an object of variants and weights, whole numbers from 0")
    if context.targeting_key is None:
        raise TargetingKeyMissingError(f"the flag {key!r} is shared out by the targeting key")
    digest = hashlib.sha256(f"{key}\0{context.targeting_key}".encode()).digest()
    total = sum(weights.values())
    place = int.from_bytes(digest[:8], "big") * total // STEPS
    for name, weight in weights.items():
        if place < weight:
            return str(name)
        place -= weight
    raise ParseError(f"the flag {key!r}: the weights of a split are all 0")


def _is_weight(weight: Any) -> bool:
    return isinstance(weight, int) and not isinstance(weight, bool) and weight >= 0
