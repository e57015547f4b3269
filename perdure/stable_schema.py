"""JSON schemas of types that are the same in every process.

A run and its workers tell by the hash of a spec whether they speak of the same agent. The order of a set differs from
process to process, so no set may reach a schema in its own order. Sets enter at three places:
1. A default, at any depth: within models, dataclasses, mappings and sequences. `encode_default` sorts them.
2. An example, which pydantic has written as a list already. The schema tells which lists are sets: `uniqueItems`.
3. `json_schema_extra`, which may hold Python's own sets.
"""

from collections.abc import Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from typing import Any, cast

from pydantic import BaseModel
from pydantic.json_schema import GenerateJsonSchema, JsonSchemaMode, JsonSchemaValue
from pydantic_core import CoreSchema

from perdure.model import canonical_json


class StableSchema(GenerateJsonSchema):
    """Generator of schemas in which every set stands sorted."""

    def encode_default(self, dft: Any) -> Any:
        """Return the default as JSON, with the lists that are sets sorted."""
        return _sort_sets(dft, super().encode_default(dft))

    def generate(self, schema: CoreSchema, mode: JsonSchemaMode = "validation") -> JsonSchemaValue:
        """Return the schema, with the sets in its examples and extras sorted."""
        generated = cast("JsonSchemaValue", _sort_raw_sets(super().generate(schema, mode)))
        _sort_examples(generated, generated)
        return generated


def _sort(items: Sequence[Any]) -> list[Any]:
    # By their JSON: the items may be of several types, which do not compare.
    return sorted(items, key=canonical_json)


def _sort_sets(value: Any, encoded: Any) -> Any:
    """Return the encoded form of the value, with each list that a set became sorted.

    A value and its encoded form are walked side by side. A part that a serializer of the user has given another
    shape stays as it is.
    """
    if isinstance(encoded, list):
        items = list[Any](encoded)  # pyright: ignore[reportUnknownArgumentType]
        if not isinstance(value, Set | Sequence) or len(value) != len(items):  # pyright: ignore[reportUnknownArgumentType]
            return items
        # A set is iterated in the order in which its serializer iterated it.
        parts = [_sort_sets(*pair) for pair in zip(cast("Sequence[Any]", value), items, strict=True)]
        return _sort(parts) if isinstance(value, Set) else parts
    if isinstance(encoded, dict):
        known = _values_by_key(value)
        named = cast("dict[str, Any]", encoded)
        return {key: _sort_sets(known[key], item) if key in known else item for key, item in named.items()}
    return encoded


def _values_by_key(value: Any) -> dict[str, Any]:
    """Return the parts of a model, dataclass or mapping, by each key under which JSON may have them."""
    if isinstance(value, BaseModel):
        found = {name: getattr(value, name) for name in type(value).model_fields}
        aliases: dict[str, Any] = {}
        for name, field in type(value).model_fields.items():
            aliases |= {alias: found[name] for alias in (field.alias, field.serialization_alias) if alias}
        return found | aliases | (value.model_extra or {})
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in dict[Any, Any](value).items()}  # pyright: ignore[reportUnknownArgumentType]
    return {}


def _sort_raw_sets(node: Any) -> Any:
    """Return the schema with Python's own sets as sorted lists."""
    if isinstance(node, Set):
        return _sort([_sort_raw_sets(item) for item in frozenset[Any](node)])  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(node, dict):
        return {key: _sort_raw_sets(item) for key, item in cast("dict[str, Any]", node).items()}
    if isinstance(node, list | tuple):
        return [_sort_raw_sets(item) for item in cast("Sequence[Any]", node)]
    return node


def _sort_examples(node: Any, root: JsonSchemaValue) -> None:
    """Sort the sets within the examples of a schema and of all schemas in it."""
    if isinstance(node, list):
        for item in list[Any](node):  # pyright: ignore[reportUnknownArgumentType]
            _sort_examples(item, root)
    if not isinstance(node, dict):
        return
    schema = cast("dict[str, Any]", node)
    for key, item in schema.items():
        if key == "examples" and isinstance(item, list):
            schema[key] = [_sort_by_schema(each, schema, root) for each in list[Any](item)]  # pyright: ignore[reportUnknownArgumentType]
        else:
            _sort_examples(item, root)


def _sort_by_schema(value: Any, node: Any, root: JsonSchemaValue) -> Any:
    """Return the JSON value with each list sorted that the schema calls a set."""
    if not isinstance(node, dict):
        return value
    schema = cast("dict[str, Any]", node)
    reference = schema.get("$ref")
    if isinstance(reference, str):
        value = _sort_by_schema(value, root.get("$defs", {}).get(reference.rpartition("/")[2]), root)
    for choice in ("anyOf", "oneOf", "allOf"):
        for part in schema.get(choice, ()):
            value = _sort_by_schema(value, part, root)
    if isinstance(value, list):
        items = [_sort_by_schema(item, schema.get("items"), root) for item in list[Any](value)]  # pyright: ignore[reportUnknownArgumentType]
        return _sort(items) if schema.get("uniqueItems") else items
    if isinstance(value, dict):
        known, additional = schema.get("properties", {}), schema.get("additionalProperties")
        named = cast("dict[str, Any]", value)
        return {key: _sort_by_schema(item, known.get(key, additional), root) for key, item in named.items()}
    return value
