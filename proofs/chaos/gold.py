"""Conversion of the set's gold calls and function documents to JSON arguments and JSON schemas."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

_TYPES = {"dict": "object", "float": "number", "tuple": "array"}
"""JSON schema types by the documents' names for them; "any" is no type at all."""


@dataclass(frozen=True)
class Call:
    """Function call as a model would make it."""

    name: str
    arguments: dict[str, Any]


def parse(expression: str, parameters: Mapping[str, Sequence[str]]) -> Call:
    """Return the call that a Python expression such as `mv('a', destination='b')` stands for.

    `parameters` are the functions' parameter names in order, for positional arguments.

    Raises:
        ValueError: the expression is no plain call of a known function with literal arguments.

    """
    try:
        node = ast.parse(expression.strip(), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"{expression!r} is no Python expression: {error.msg}") from None
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise ValueError(f"{expression!r} is not a plain call")
    name = node.func.id
    if name not in parameters:
        raise ValueError(f"{expression!r} calls {name!r}, which no document describes")
    if len(node.args) > len(parameters[name]):
        raise ValueError(f"{expression!r} gives {len(node.args)} positional arguments; {name!r} takes fewer")
    arguments: dict[str, Any] = {}
    for parameter, value in zip(parameters[name], node.args, strict=False):
        arguments[parameter] = ast.literal_eval(value)
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in arguments:
            raise ValueError(f"{expression!r} gives an argument twice, or by **")
        arguments[keyword.arg] = ast.literal_eval(keyword.value)
    return Call(name, arguments)


def json_schema(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a function document's parameters as a JSON schema, without defaults: the function has them."""
    schema: dict[str, Any] = {}
    kind = document.get("type")
    if kind is not None and kind != "any":
        schema["type"] = _TYPES.get(kind, kind)
    for keyword in ("description", "enum", "required"):
        if keyword in document:
            schema[keyword] = document[keyword]
    if "properties" in document:
        schema["properties"] = {name: json_schema(value) for name, value in document["properties"].items()}
    if "items" in document:
        schema["items"] = json_schema(document["items"])
    return schema


def fits(value: Any, schema: Mapping[str, Any]) -> bool:
    """Check a value against the schema's type; a schema without a type fits every value."""
    kinds = schema.get("type")
    if kinds is None:
        return True
    if isinstance(kinds, list):
        return any(fits(value, {**schema, "type": kind}) for kind in kinds)  # pyright: ignore[reportUnknownVariableType]
    if kinds == "array":
        return isinstance(value, list) and all(fits(item, schema.get("items", {})) for item in value)  # pyright: ignore[reportUnknownVariableType]
    plain: dict[str, tuple[type, ...]] = {
        "string": (str,),
        "boolean": (bool,),
        "integer": (int,),
        "number": (int, float),
        "object": (dict,),
    }
    if isinstance(value, bool):  # in Python a bool is an int, in JSON schema it is not
        return bool(kinds == "boolean")
    return isinstance(value, plain[kinds])


def widen(schema: dict[str, Any], arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Return the schema with a further type for each argument of a gold call that the schema rules out."""
    properties = dict(schema.get("properties", {}))
    for name, value in arguments.items():
        if not fits(value, properties[name]):
            also = {str: "string", int: "integer", float: "number", bool: "boolean"}[type(value)]
            known = properties[name]["type"]
            properties[name] = {
                **properties[name],
                "type": [*([known] if isinstance(known, str) else known), also],
            }
    return {**schema, "properties": properties}
