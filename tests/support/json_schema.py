"""Enough of JSON Schema (draft 2020-12) for the schemas that the package publishes. A keyword that
is not known here is an error: nothing in a schema is passed over."""

from __future__ import annotations

import re
from typing import Any

_TYPES: dict[str, Any] = {
    "object": dict,
    "array": list,
    "string": str,
    "integer": int,
    "null": type(None),
    "boolean": bool,
}
_WORDS = {"$schema", "$id", "$defs", "title", "description"}


def violations(
    schema: dict[str, Any], value: Any, whole: dict[str, Any] | None = None
) -> list[str]:
    """What ``value`` breaks of the schema; empty where it is valid."""
    whole = schema if whole is None else whole
    found: list[str] = []
    for keyword, said in schema.items():
        if keyword in _WORDS:
            continue
        check = _CHECKS[keyword]
        found += [f"{keyword}: {each}" for each in check(said, value, schema, whole)]
    return found


def _is(kind: str, value: Any) -> bool:
    return isinstance(value, _TYPES[kind]) and not (kind == "integer" and isinstance(value, bool))


def _type(said: Any, value: Any, *_: Any) -> list[str]:
    kinds = [said] if isinstance(said, str) else said
    return [] if any(_is(kind, value) for kind in kinds) else [f"{value!r:.40} is no {said}"]


def _const(said: Any, value: Any, *_: Any) -> list[str]:
    return [] if value == said and type(value) is type(said) else [f"{value!r:.40}"]


def _enum(said: Any, value: Any, *_: Any) -> list[str]:
    return [] if any(not _const(each, value) for each in said) else [f"{value!r:.40}"]


def _pattern(said: Any, value: Any, *_: Any) -> list[str]:
    if not isinstance(value, str) or re.search(said.replace("$", r"\Z"), value, re.ASCII):
        return []
    return [f"{value!r:.40}"]


def _required(said: Any, value: Any, *_: Any) -> list[str]:
    return [name for name in said if name not in value] if isinstance(value, dict) else []


def _properties(said: Any, value: Any, _: Any, whole: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    return [
        f"{name}: {each}"
        for name, inner in said.items()
        if name in value
        for each in violations(inner, value[name], whole)
    ]


def _additional(said: Any, value: Any, schema: Any, whole: Any) -> list[str]:
    if not isinstance(value, dict):
        return []
    more = {name: each for name, each in value.items() if name not in schema.get("properties", {})}
    if isinstance(said, bool):
        return [] if said else list(more)
    return [each for member in more.values() for each in violations(said, member, whole)]


def _names(said: Any, value: Any, _: Any, whole: Any) -> list[str]:
    names = value if isinstance(value, dict) else {}
    return [each for name in names for each in violations(said, name, whole)]


def _items(said: Any, value: Any, _: Any, whole: Any) -> list[str]:
    members = value if isinstance(value, list) else []
    return [each for member in members for each in violations(said, member, whole)]


def _unique(said: Any, value: Any, *_: Any) -> list[str]:
    if not isinstance(value, list) or not said:
        return []
    return ["twice"] if any(value.count(each) > 1 for each in value) else []


def _at_least(said: Any, value: Any, *_: Any) -> list[str]:
    return ["too small"] if _is("integer", value) and value < said else []


def _at_most(said: Any, value: Any, *_: Any) -> list[str]:
    return ["too large"] if _is("integer", value) and value > said else []


def _fewest(said: Any, value: Any, *_: Any) -> list[str]:
    return ["too few"] if isinstance(value, list) and len(value) < said else []


def _most(said: Any, value: Any, *_: Any) -> list[str]:
    return ["too many"] if isinstance(value, list) and len(value) > said else []


def _any(said: Any, value: Any, _: Any, whole: Any) -> list[str]:
    each = [violations(inner, value, whole) for inner in said]
    return [] if any(not found for found in each) else [str(each)]


def _all(said: Any, value: Any, _: Any, whole: Any) -> list[str]:
    return [found for inner in said for found in violations(inner, value, whole)]


def _reference(said: Any, value: Any, _: Any, whole: Any) -> list[str]:
    return violations(whole["$defs"][said.removeprefix("#/$defs/")], value, whole)


_CHECKS: dict[str, Any] = {
    "type": _type,
    "const": _const,
    "enum": _enum,
    "pattern": _pattern,
    "required": _required,
    "properties": _properties,
    "additionalProperties": _additional,
    "propertyNames": _names,
    "items": _items,
    "uniqueItems": _unique,
    "minimum": _at_least,
    "maximum": _at_most,
    "minItems": _fewest,
    "maxItems": _most,
    "anyOf": _any,
    "allOf": _all,
    "$ref": _reference,
}
