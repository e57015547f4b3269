"""JSON schemas of tools, from type hints and docstrings. Strict: nothing is guessed."""

import inspect
import json
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast, get_type_hints

import docstring_parser
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match  # pyright: ignore[reportUnknownVariableType]
from jsonschema.exceptions import ValidationError as SchemaProblem
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_json
from referencing import Registry
from referencing.exceptions import Unresolvable

from perdure.errors import DefinitionError
from perdure.limits import explain

_NOWHERE: Registry[Any] = Registry()
"""Registry without schemas that fetches none: a schema may refer only to itself."""

_OURS = ("perdure.tools", "ToolContext")


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Parameters of a function: `model` validates arguments, `context` names the ToolContext parameter."""

    description: str
    input_schema: dict[str, Any]
    model: type[BaseModel]
    context: str | None

    def bind(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as the Python values that the function expects.

        Raises:
            ValueError: they do not fit; the message names each field.

        """
        try:
            # Validated as JSON, because a strict model accepts the text of a date from JSON only.
            bound = self.model.model_validate_json(to_json(arguments))
        except ValidationError as error:
            raise ValueError(explain(error)) from None
        return {str(field.alias): getattr(bound, name) for name, field in type(bound).model_fields.items()}


def signature_of(function: Callable[..., Any], name: str) -> Signature:
    """Return the signature of a function, with the descriptions of its docstring.

    Raises:
        DefinitionError: it has no docstring, a parameter without a type, or a type that no JSON value fits.

    """
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    description = "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)
    if not description:
        raise DefinitionError(f"tool {name!r} has no docstring: the model chooses tools by their description")
    described = {param.arg_name: param.description for param in doc.params}
    hints = _hints(function, name)
    fields: dict[str, Any] = {}
    context: str | None = None
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name)
        _check_kind(parameter, name)
        if (getattr(hint, "__module__", None), getattr(hint, "__qualname__", None)) == _OURS:
            if context is not None:
                raise DefinitionError(
                    f"tool {name!r}: parameters {context!r} and {parameter.name!r} are both ToolContext"
                )
            context = parameter.name
            continue
        fields[parameter.name] = _field(parameter, hint, described.get(parameter.name), name)
    model = _model(name, fields)
    schema = model.model_json_schema()
    # The title would repeat the tool's name in every request.
    schema.pop("title", None)
    _sort_defaults(schema, function)
    return Signature(description=description, input_schema=schema, model=model, context=context)


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise DefinitionError(f"tool {name!r}: a type hint cannot be resolved: {error}") from None


def _sort_defaults(schema: dict[str, Any], function: Callable[..., Any]) -> None:
    """Sort defaults that are sets in the schema."""
    # A set's order differs from process to process; the schema, and with it the spec's digest, must not.
    for parameter in inspect.signature(function).parameters.values():
        if isinstance(parameter.default, set | frozenset):
            schema["properties"][parameter.name]["default"].sort(key=repr)


def _check_kind(parameter: inspect.Parameter, tool: str) -> None:
    if parameter.kind not in (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY):
        raise DefinitionError(
            f"tool {tool!r}: parameter {parameter.name!r} is {parameter.kind.description}; "
            "a model can only fill parameters that have a name"
        )


def _field(parameter: inspect.Parameter, hint: Any, description: str | None, tool: str) -> tuple[Any, Any]:
    if hint is None:
        raise DefinitionError(f"tool {tool!r}: parameter {parameter.name!r} has no type hint")
    if parameter.name.startswith("_"):
        raise DefinitionError(f"tool {tool!r}: parameter {parameter.name!r} must not start with '_'")
    # Called directly, the function would get the Field object as its argument.
    if isinstance(parameter.default, FieldInfo):
        raise DefinitionError(
            f"tool {tool!r}: parameter {parameter.name!r} has a Field for its default; "
            "write Annotated[type, Field(...)] = default"
        )
    default = ... if parameter.default is inspect.Parameter.empty else parameter.default
    if description is None:
        return hint, Field(default, alias=parameter.name)
    return hint, Field(default, alias=parameter.name, description=description)


def _model(tool: str, fields: dict[str, Any]) -> type[BaseModel]:
    config = ConfigDict(extra="forbid")
    for name, (hint, field) in fields.items():
        # Each field in a model of its own, so that the message can name the parameter.
        try:
            fields_of_one: dict[str, Any] = {"field": (hint, field)}
            create_model("parameter", __config__=config, **fields_of_one).model_json_schema()
        except (PydanticSchemaGenerationError, PydanticUserError, NameError) as error:
            first = str(error).splitlines()[0]
            raise DefinitionError(
                f"tool {tool!r}: parameter {name!r} has a type no JSON value can fill: {first}"
            ) from None
    # Fields have names of our own: a parameter may be called `json` or `copy`, like a method of pydantic.
    numbered: dict[str, Any] = {f"field_{n}": field for n, field in enumerate(fields.values())}
    model: type[BaseModel] = create_model(tool, __config__=config, **numbered)
    return model


def check_schema(schema: dict[str, Any], what: str) -> None:
    """Check that it is a JSON schema of an object.

    Raises:
        DefinitionError: it is not; the message begins with `what`.

    """
    try:
        Draft202012Validator.check_schema(schema)
    except SchemaError as error:
        raise DefinitionError(f"{what}: not a valid JSON schema: {error.message}") from None
    for reference in _references(schema):
        if not _resolves(reference, schema):
            raise DefinitionError(f"{what}: the schema refers to {reference!r}, which is not in it")
    if schema.get("type") != "object":
        raise DefinitionError(f"{what}: the schema's type must be 'object', not {schema.get('type')!r}")


def _references(schema: Any) -> Iterable[str]:
    stack: list[Any] = [schema]
    while stack:
        node = stack.pop()
        if isinstance(node, dict):
            named = cast("dict[str, Any]", node)
            if isinstance(named.get("$ref"), str):
                yield named["$ref"]
            stack.extend(named.values())
        elif isinstance(node, list):
            stack.extend(node)  # pyright: ignore[reportUnknownArgumentType]


def _resolves(reference: str, schema: dict[str, Any]) -> bool:
    # The root is kept, because references are relative to its `$id`. The registry fetches nothing.
    root = Draft202012Validator(schema, registry=_NOWHERE)
    try:
        root.evolve(schema={"$ref": reference}).is_valid(None)
    except Unresolvable:
        return False
    return True


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Draft202012Validator:
    """Return the validator of a schema, cached: making it costs more than most checks."""
    return Draft202012Validator(json.loads(schema), registry=_NOWHERE)


def problem_with(value: Any, schema: dict[str, Any]) -> str | None:
    """Return why the value does not fit the schema, in a line that names the place; None when it fits.

    Checks that Python cannot make count as passed: a pattern in another dialect than that of `re`, or a
    number too large to divide. The receiver of the value makes them.
    """
    try:
        worst = cast("SchemaProblem | None", best_match(_validator(json.dumps(schema)).iter_errors(value)))
    except (re.error, ArithmeticError, ValueError):
        return None
    if worst is None:
        return None
    where = ".".join(str(step) for step in cast("Iterable[object]", worst.absolute_path))
    return f"{where}: {worst.message}" if where else str(worst.message)
