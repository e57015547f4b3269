"""Schemas of tools as a provider takes them. Pure.

A schema goes out as it is where the provider takes it. Otherwise it goes out without what the provider refuses, so it
allows more: the arguments of each call are validated against the whole schema when the reply comes. What no other
schema can express, such as the name of a parameter, is a problem of the agent's definition.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast
from urllib.parse import unquote

from .capabilities import Capabilities

Schema = dict[str, Any]

_MOST_INLINED: Final = 2000
"""References of one schema that are replaced by what they refer to. Those beyond allow anything."""
_FORMATS: Final = ("date-time", "enum", "float", "double", "int32", "int64")
"""Formats of OpenAPI that providers take."""
_ONE_INSIDE: Final = (
    *(
        "items",
        "additionalProperties",
        "unevaluatedProperties",
        "unevaluatedItems",
        "contains",
        "propertyNames",
    ),
    *("not", "if", "then", "else", "additionalItems"),
)
_LIST_INSIDE: Final = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAP_INSIDE: Final = ("properties", "$defs", "definitions", "patternProperties", "dependentSchemas")


def problem_with_schema(schema: Schema, capabilities: Capabilities) -> str | None:
    """Return why the model would refuse a tool of this schema, in words that go after "its"; None if it would not."""
    pattern = capabilities.property_name
    for name in cast("dict[str, Any]", schema.get("properties", {})) if pattern else ():
        if not re.fullmatch(pattern or "", name):
            return f"parameter {name!r} has a name that does not match {pattern}"
    if capabilities.most_depth is not None:
        depth = _depth(sendable_schema(schema, capabilities))
        if depth > capabilities.most_depth:
            return f"schema is {depth} levels deep, and at most {capabilities.most_depth} are taken"
    return None


def sendable_schema(schema: Schema, capabilities: Capabilities) -> Schema:
    """Return the schema as the model takes it; the same object where it takes it as it is."""
    sent = schema
    if not capabilities.references and "$ref" in json.dumps(schema):
        sent = _Inliner(root=schema).inline(schema)
        sent = {key: value for key, value in sent.items() if key not in ("$defs", "definitions")}
    refused = [key for key in capabilities.refused_top_keywords if key in sent]
    if refused or (capabilities.top_keywords is not None and any(key in sent for key in _LIST_INSIDE[:3])):
        sent = _merge_choices(sent)
        sent = {key: value for key, value in sent.items() if key not in capabilities.refused_top_keywords}
    sent = _complete(sent)
    if "properties" not in sent:
        # Some providers refuse an object without them, and none refuses an empty one.
        sent = {**sent, "properties": dict[str, Any]()}
    if capabilities.keywords is not None:
        sent = _restrict(sent, frozenset(capabilities.keywords))
    if capabilities.top_keywords is not None:
        sent = {key: value for key, value in sent.items() if key in capabilities.top_keywords}
    return sent


# -- parts


def _map_inside(schema: Schema, change: Callable[[Any], Any]) -> Schema:
    """Return the schema with `change` applied to each schema directly in it; the same object if none changes."""
    changed: Schema = {}
    for key, value in schema.items():
        if key in _ONE_INSIDE and isinstance(value, dict):
            new: Any = change(value)
        elif key in _LIST_INSIDE and isinstance(value, list):
            new = [change(item) for item in _as_list(value)]
        elif key in _MAP_INSIDE and isinstance(value, dict):
            new = {name: change(item) for name, item in cast("dict[str, Any]", value).items()}
        else:
            continue
        if new != value:
            changed[key] = new
    return {**schema, **changed} if changed else schema


def _complete(schema: Any) -> Any:
    """Return the schema with `items` for every array: some providers refuse an array without them."""
    if not isinstance(schema, dict):
        return schema
    done = _map_inside(cast("Schema", schema), _complete)
    if done.get("type") == "array" and "items" not in done and "prefixItems" not in done:
        done = {**done, "items": dict[str, Any]()}
    return done


def _depth(schema: Any) -> int:
    inner = [0]

    def visit(item: Any) -> Any:
        inner.append(_depth(item))
        return item

    if isinstance(schema, dict):
        _map_inside(cast("Schema", schema), visit)
    return 1 + max(inner)


# -- references


@dataclass
class _Inliner:
    """Replacement of references by what they refer to; one within itself allows anything."""

    root: Schema
    inlined: int = 0

    def inline(self, schema: Any, open_refs: frozenset[str] = frozenset()) -> Any:
        if not isinstance(schema, dict):
            return schema
        node = cast("Schema", schema)
        reference = node.get("$ref")
        if not isinstance(reference, str):
            return _map_inside(node, partial(self.inline, open_refs=open_refs))
        beside = {key: value for key, value in node.items() if key != "$ref"}
        self.inlined += 1
        target = _target(reference, self.root)
        if target is None or reference in open_refs or self.inlined > _MOST_INLINED:
            known = target or {}
            return {key: known[key] for key in ("type", "description") if key in known} | beside
        inner = {key: value for key, value in target.items() if key not in ("$defs", "definitions")}
        return self.inline({**inner, **beside}, open_refs | {reference})


def _target(reference: str, root: Schema) -> Schema | None:
    if not reference.startswith("#"):
        return None
    found: Any = root
    for step in filter(None, reference[1:].split("/")):
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        if isinstance(found, dict) and key in found:
            found = cast("dict[str, Any]", found)[key]
        elif key.isdecimal() and int(key) < len(_as_list(found)):
            found = _as_list(found)[int(key)]
        else:
            return None
    return cast("Schema", found) if isinstance(found, dict) else None


# -- choices


def _merge_choices(schema: Schema) -> Schema:
    """Return an object's schema with the parameters of all choices at its top as its own.

    All parts of `allOf` bind, so what one of them requires stays required. Those of a choice become optional.
    """
    properties: dict[str, Any] = dict(schema.get("properties", {}))
    required: list[str] = list(schema.get("required", ()))
    for key in ("allOf", "anyOf", "oneOf"):
        for branch in cast("list[Any]", schema.get(key, [])):
            inner = _resolve(branch, schema)
            for name, described in cast("dict[str, Any]", inner.get("properties", {})).items():
                known = properties.get(name, described)
                properties[name] = known if known in (described, True) else {"anyOf": [known, described]}
            if key == "allOf":
                required += [name for name in inner.get("required", ()) if name not in required]
    kept = {key: value for key, value in schema.items() if key not in ("allOf", "anyOf", "oneOf")}
    # The parameters of a choice would be refused as unknown ones.
    return {**kept, "properties": properties, **({"required": required} if required else {})}


def _resolve(branch: Any, root: Schema) -> Schema:
    if not isinstance(branch, dict):
        return {}
    node = cast("Schema", branch)
    reference = node.get("$ref")
    return (_target(reference, root) or {}) if isinstance(reference, str) else _merge_nested(node)


def _merge_nested(node: Schema) -> Schema:
    return _merge_choices(node) if any(key in node for key in ("allOf", "anyOf", "oneOf")) else node


# -- a list of keywords


def _restrict(schema: Any, keywords: frozenset[str]) -> Schema:
    """Return the schema with these keywords alone, and with the nearest of them in place of others."""
    if not isinstance(schema, dict):
        return {}
    inside: Callable[[Any], Any] = partial(_restrict, keywords=keywords)
    node = _map_inside(_reword(cast("Schema", schema), keywords), inside)
    if isinstance(node.get("items"), bool):
        node = {**node, "items": dict[str, Any]()}
    return {key: value for key, value in node.items() if key in keywords}


def _reword(node: Schema, keywords: frozenset[str]) -> Schema:
    """Return the schema with what it says by other keywords said by these, as far as they can."""
    node = dict(node)
    if "const" in node and "const" not in keywords:
        node["enum"] = [node.pop("const")]
    if "oneOf" in node and "oneOf" not in keywords:
        node["anyOf"] = [*node.get("anyOf", ()), *node.pop("oneOf")]
    if "allOf" in node and "allOf" not in keywords:
        merged: Schema = {}
        for part in _as_list(node.pop("allOf")):
            merged |= cast("Schema", part) if isinstance(part, dict) else {}
        node = {**merged, **node}
    return _as_openapi(node) if "nullable" in keywords else node


def _as_openapi(node: Schema) -> Schema:
    """Return the schema in the words of OpenAPI, which knows neither the type null nor numbers to choose from."""
    node = _name_null(node)
    values = _as_list(node.get("enum"))
    if not all(isinstance(value, str) for value in values):
        del node["enum"]
        shown = ", ".join(json.dumps(value, ensure_ascii=False) for value in values)
        node["description"] = f"{node.get('description', '')} One of: {shown}.".strip()
    if "format" in node and node["format"] not in _FORMATS:
        del node["format"]
    return node


def _name_null(node: Schema) -> Schema:
    """Return the schema with `nullable` in place of the type null."""
    kinds = _as_list(node.get("type"))
    named = [kind for kind in kinds if kind != "null"]
    if kinds:
        del node["type"]
        node |= {"nullable": True} if len(named) != len(kinds) else {}
        node |= {"type": named[0]} if len(named) == 1 else {"anyOf": [{"type": kind} for kind in named]}
    choices = _as_list(node.get("anyOf"))
    kept = [choice for choice in choices if choice != {"type": "null"}]
    if len(kept) == len(choices):
        return node
    node = {**node, "nullable": True, "anyOf": kept}
    if len(kept) > 1:
        return node
    del node["anyOf"]
    only: Any = kept[0] if kept else None
    return {**_name_null(dict(cast("Schema", only))), **node} if isinstance(only, dict) else node


def _as_list(value: Any) -> list[Any]:
    """Return a list as it is, and anything else as an empty one."""
    return list[Any](value) if isinstance(value, list) else []  # pyright: ignore[reportUnknownArgumentType]


def problem_with_tools(
    schemas: Iterable[tuple[str, Mapping[str, Any]]], capabilities: Capabilities
) -> str | None:
    """Return why the model would refuse these tools, by name and schema; None if it would not."""
    tools = list(schemas)
    if tools and not capabilities.tools:
        return f"it takes no tools, and {tools[0][0]} is one"
    if capabilities.most_tools is not None and len(tools) > capabilities.most_tools:
        return f"it takes at most {capabilities.most_tools} tools, and these are {len(tools)}"
    for name, schema in tools:
        if not re.fullmatch(capabilities.tool_name, name):
            return f"the name of the tool {name!r} does not match {capabilities.tool_name}"
        if problem := problem_with_schema(dict(schema), capabilities):
            return f"tool {name!r}: its {problem}"
    return None
