"""Typed outputs: the JSON in which a model is asked for a value of any type that pydantic can read. Pure.

Providers require an object where a model gives its final answer. A type whose JSON is an object is asked for as it is.
Of any other, such as `list[int]`, the value is asked for as the field `value` of an object, and the run's output is
what stands in that field.
"""

from dataclasses import dataclass
from typing import Any, Final, cast

from pydantic import PydanticUserError, TypeAdapter
from pydantic_core import to_json
from typing_extensions import TypeVar

from perdure.errors import DefinitionError
from perdure.stable_schema import StableSchema

Output = TypeVar("Output", covariant=True, default=Any)  # noqa: PLC0105 - people read it in the hints of their editors
"""Type of an agent's output, and of the results of its runs."""
_FIELD: Final = "value"


@dataclass(frozen=True)
class OutputForm:
    """Form of a typed output."""

    adapter: TypeAdapter[Any]
    schema: dict[str, Any]
    """JSON schema of what the model gives: an object."""
    is_wrapped: bool
    """True: the output stands in a field of that object."""

    def read(self, output: Any) -> Any:
        """Return an output in JSON as a value of the type.

        Raises:
            ValidationError: it does not fit.

        """
        # Read as JSON: a strict model takes a date's text from JSON only.
        return self.adapter.validate_json(to_json(output))


def output_form(kind: Any, what: str) -> OutputForm | None:
    """Return the form of outputs of a type, or None for plain text. `what` names the definition in the error.

    Raises:
        DefinitionError: pydantic has no schema of the type.

    """
    if kind is None or kind is str:
        return None
    try:
        adapter = TypeAdapter[Any](kind)
        schema = adapter.json_schema(schema_generator=StableSchema)
    except (PydanticUserError, NameError) as error:
        raise DefinitionError(f"{what}: output_type: {str(error).splitlines()[0]}") from None
    if _takes_none(adapter):
        raise DefinitionError(
            f"{what}: output_type must not take None, for None is the output of a run that ended without one; "
            "use a model with a field that may be None"
        )
    definitions = schema.get("$defs", {})
    if "$ref" in schema:  # the schema of a recursive type is a reference
        schema = {**definitions[schema["$ref"].rpartition("/")[2]], "$defs": definitions}
    if schema.get("type") == "object":
        return OutputForm(adapter, schema, is_wrapped=False)
    return OutputForm(adapter, _wrapped(schema, definitions), is_wrapped=True)


def _takes_none(adapter: TypeAdapter[Any]) -> bool:
    try:
        adapter.validate_json("null")
    except Exception:  # checks of the user's type may raise anything
        return False
    return True


def _wrapped(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    own = {name: part for name, part in schema.items() if name != "$defs"}
    wrapped = {
        "type": "object",
        "properties": {_FIELD: own},
        "required": [_FIELD],
        "additionalProperties": False,
    }
    return {**wrapped, "$defs": definitions} if definitions else wrapped


def wrap(value: Any) -> Any:
    """Return a bare value as the object that holds it; that object as it is."""
    fields = cast("dict[str, Any]", value) if isinstance(value, dict) else {}
    return fields if fields.keys() == {_FIELD} else {_FIELD: cast("Any", value)}


def unwrap(value: Any) -> Any:
    """Return the output that an object holds, which fits the wrapped schema."""
    return value[_FIELD]
