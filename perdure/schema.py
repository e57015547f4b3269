"""JSON schemas of tools, from type hints and docstrings, and the canonical form of arguments.

Schemas are strict: nothing is guessed.

Canonical arguments. A model, a person or a hook may write one value in several ways: 7, 7.0 and "7" for an
integer. Policy, approval digest and tool must see the same value. So arguments are made canonical once, where
they enter, and every later reader takes them as they stand.
1. `canonical_arguments` knows only the schema. It is pure, so the engine may call it, and it serves tools in any
   language. It converts scalars as pydantic's lax mode does.
2. `Signature.canonical` also knows the function's types, and the changes that their validators make.
3. Canonical arguments are canonical again: both functions leave them as they are.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast, get_origin, get_type_hints
from urllib.parse import unquote

import docstring_parser
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError, best_match  # pyright: ignore[reportUnknownVariableType]
from jsonschema.exceptions import ValidationError as SchemaProblem
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticSchemaGenerationError, PydanticUserError
from pydantic.fields import FieldInfo
from pydantic_core import to_json
from referencing import Registry
from referencing.exceptions import Unresolvable

from perdure.definitions import explain
from perdure.errors import DefinitionError
from perdure.stable_schema import StableSchema

_NOWHERE: Registry[Any] = Registry()
"""Registry without schemas that fetches none: a schema may refer only to itself."""

_OURS = ("perdure.tools", "ToolContext")

_LAX: dict[str, TypeAdapter[Any]] = {
    "integer": TypeAdapter(int),
    "number": TypeAdapter(float),
    "boolean": TypeAdapter(bool),
}
"""Conversions of scalars, in the order in which they are tried: those that a function's binding makes."""

_EXACT_FLOATS = 2**53
"""Bound below which a float without a fraction is one integer exactly."""


@dataclass(frozen=True, kw_only=True)
class Signature:
    """Parameters of a function: `model` validates arguments, `context` names the ToolContext parameter."""

    description: str
    input_schema: dict[str, Any]
    model: type[BaseModel]
    context: str | None
    is_method: bool = False
    """True: the first parameter is `self`, so the function must be bound to an object before it is called."""

    def bind(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments as the Python values that the function expects.

        Raises:
            ValueError: they do not fit; the message names each field.

        """
        try:
            bound = self._validate(arguments)
        except ValidationError as error:
            raise ValueError(explain(error)) from None
        return {str(field.alias): getattr(bound, name) for name, field in type(bound).model_fields.items()}

    def _validate(self, arguments: dict[str, Any]) -> BaseModel:
        # Validated as JSON, because a strict model accepts the text of a date from JSON only.
        return self.model.model_validate_json(to_json(arguments))

    def canonical(self, arguments: dict[str, Any], resource: str | None = None) -> dict[str, Any]:
        """Return the arguments as JSON of the values that the function gets, with the resource's default.

        A value without a stable JSON form, such as a secret, stays as it was written.

        Raises:
            ValueError: they do not fit, or the resource has no stable form, so no policy could match it.

        """
        plain = canonical_arguments(arguments, self.input_schema, resource)
        bound = self.bind(plain)
        dumped = self._dump(plain)
        for name in plain:
            if dumped[name] == plain[name]:
                continue
            changed = {**plain, name: dumped[name]}
            # A validator that adds a prefix, for example, would add it again when the call runs.
            if self._reads_as(changed, name, bound[name]):
                plain = changed
            elif name == resource:
                raise ValueError(f"{resource}: {plain[name]!r} has no stable form that a policy could match")
        return plain

    def _dump(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return each of the arguments as JSON of its bound value, or as it is if that cannot be written."""
        try:
            bound = self._validate(arguments)
            dumped = bound.model_dump(mode="json", by_alias=True, exclude_unset=True, warnings="none")
            return {name: _whole_numbers(dumped[name]) for name in arguments}
        except Exception:  # a serializer of the user's classes may raise anything
            return arguments

    def _reads_as(self, arguments: dict[str, Any], name: str, value: Any) -> bool:
        """Check whether the arguments fit the schema, and the function would get the value."""
        if problem_with(arguments, self.input_schema) is not None:
            return False
        try:
            return bool(self.bind(arguments)[name] == value)
        except Exception:  # a comparison of the user's classes may raise anything
            return False


@dataclass(frozen=True, kw_only=True)
class GivenSignature(Signature):
    """Parameters by a JSON schema that was given; the function gets the arguments by their names."""

    def bind(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments, which fit the schema.

        Raises:
            ValueError: they do not fit.

        """
        problem = problem_with(arguments, self.input_schema)
        if problem is not None:
            raise ValueError(problem)
        return dict(arguments)

    def canonical(self, arguments: dict[str, Any], resource: str | None = None) -> dict[str, Any]:
        """Return the arguments as a reader of the schema takes them, with the resource's default.

        Raises:
            ValueError: they do not fit.

        """
        return self.bind(canonical_arguments(arguments, self.input_schema, resource))


def signature_of(
    function: Callable[..., Any],
    name: str,
    *,
    schema: dict[str, Any] | None = None,
    description: str | None = None,
) -> Signature:
    """Return the signature of a function, with the descriptions of its docstring.

    Args:
        function: the function, or a method of a class that is being defined.
        name: the tool's name, for errors.
        schema: JSON schema of the arguments, in place of that of the type hints.
        description: text in place of the docstring's.

    Raises:
        DefinitionError: it has no docstring, a parameter without a type, or a type that no JSON value fits.

    """
    doc = docstring_parser.parse(inspect.getdoc(function) or "")
    text = description or "\n\n".join(part for part in (doc.short_description, doc.long_description) if part)
    if not text:
        raise DefinitionError(f"tool {name!r} has no docstring: the model chooses tools by their description")
    hints = _hints(function, name)
    parameters = list(inspect.signature(function).parameters.values())
    is_method = _is_method(function, parameters)
    parameters = parameters[1:] if is_method else parameters
    context = _context_of(parameters, hints, name)
    others = [parameter for parameter in parameters if parameter.name != context]
    if schema is not None:
        _check_given(schema, others, context, name)
        return GivenSignature(
            description=text, input_schema=schema, model=BaseModel, context=context, is_method=is_method
        )
    described = {param.arg_name: param.description for param in doc.params}
    fields: dict[str, Any] = {}
    for parameter in others:
        _check_kind(parameter, name)
        hint = hints.get(parameter.name)
        fields[parameter.name] = _field(parameter, hint, described.get(parameter.name), name)
    model = _model(name, fields)
    made = model.model_json_schema(schema_generator=StableSchema)
    # The title would repeat the tool's name in every request.
    made.pop("title", None)
    return Signature(description=text, input_schema=made, model=model, context=context, is_method=is_method)


def _is_method(function: Callable[..., Any], parameters: Sequence[inspect.Parameter]) -> bool:
    """Return whether the function stands in a class, and waits for an object of it."""
    place = getattr(function, "__qualname__", "").rpartition(".")[0]
    in_class = bool(place) and not place.endswith("<locals>")
    return in_class and bool(parameters) and parameters[0].name == "self"


def _context_of(parameters: Sequence[inspect.Parameter], hints: dict[str, Any], name: str) -> str | None:
    """Return the name of the parameter that gets the ToolContext, or None."""
    found: str | None = None
    for parameter in parameters:
        hint = hints.get(parameter.name)
        kind = get_origin(hint) or hint  # such as ToolContext[Pool]
        if (getattr(kind, "__module__", None), getattr(kind, "__qualname__", None)) != _OURS:
            continue
        if found is not None:
            raise DefinitionError(
                f"tool {name!r}: parameters {found!r} and {parameter.name!r} are both ToolContext"
            )
        _check_kind(parameter, name)
        found = parameter.name
    return found


def _check_given(
    schema: dict[str, Any], parameters: Sequence[inspect.Parameter], context: str | None, name: str
) -> None:
    """Check that a function can take all arguments of a given schema by their names."""
    check_schema(schema, f"tool {name!r}")
    described = set(schema.get("properties", {}))
    if context in described:
        raise DefinitionError(f"tool {name!r}: the schema describes {context!r}, which is the ToolContext")
    named = {parameter.name: parameter for parameter in parameters}
    takes_all = any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters)
    missing = sorted(described - named.keys())
    if missing and not takes_all:
        raise DefinitionError(
            f"tool {name!r}: the schema describes {missing[0]!r}, and the function has no such parameter; add it, or "
            "**arguments"
        )
    required = set(schema.get("required", ()))
    for parameter in parameters:
        is_filled = parameter.name in required or parameter.default is not inspect.Parameter.empty
        if parameter.kind is not inspect.Parameter.VAR_KEYWORD and not is_filled:
            raise DefinitionError(
                f"tool {name!r}: parameter {parameter.name!r} has no default, and the schema does not require it"
            )


def _hints(function: Callable[..., Any], name: str) -> dict[str, Any]:
    try:
        return get_type_hints(function, include_extras=True)
    except (NameError, TypeError, SyntaxError, AttributeError) as error:
        raise DefinitionError(f"tool {name!r}: a type hint cannot be resolved: {error}") from None


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


def canonical_arguments(
    arguments: dict[str, Any], schema: dict[str, Any], resource: str | None = None, *, defaults: bool = False
) -> dict[str, Any]:
    """Return the arguments in the form that a tool with this schema reads them in. Pure.

    Texts become the numbers and booleans that the schema asks for, at any depth. A float without a fraction is
    written as an integer (RFC 8785). A missing `resource` gets its default, and with `defaults` every parameter
    that has one does. Everything else stays as it is.
    """
    properties = schema.get("properties", {})
    if defaults:
        arguments = {**arguments, **_defaults(arguments, schema)}
    if resource is not None and resource not in arguments and "default" in properties.get(resource, {}):
        arguments = {**arguments, resource: properties[resource]["default"]}
    described = {name: _schema_of(name, schema) for name in arguments}
    return {name: _read_argument(value, described[name], schema) for name, value in arguments.items()}


def _defaults(arguments: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """Return the defaults of missing parameters, as far as they can be given like any other value."""
    missing = {
        name: described["default"]
        for name, described in schema.get("properties", {}).items()
        if name not in arguments and "default" in described and not described.get("writeOnly")
    }
    # A default may be of another type than the parameter, such as null for an integer.
    return {
        name: value
        for name, value in missing.items()
        if _is_valid(value, schema["properties"][name], _validator(json.dumps(schema)))
    }


def _read_argument(value: Any, schema: Any, root: dict[str, Any]) -> Any:
    # Each argument by itself: nesting too deep to follow must not keep the others from their canonical form.
    try:
        return _whole_numbers(_read(value, schema, root))
    except RecursionError:
        return value


def _read(value: Any, schema: Any, root: dict[str, Any]) -> Any:
    """Return the value as a reader with this schema takes it; unchanged where it does not fit."""
    if not isinstance(schema, dict):
        return value
    node = cast("dict[str, Any]", schema)
    if isinstance(node.get("$ref"), str):
        value = _read(value, _target(node["$ref"], root), root)
    for part in node.get("allOf", ()):
        value = _read(value, part, root)
    for choice in ("anyOf", "oneOf"):
        value = _read_choice(value, node.get(choice, ()), root)
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        return {name: _read(item, _schema_of(name, node), root) for name, item in fields.items()}
    if isinstance(value, list):
        items, first = list[Any](value), node.get("prefixItems", ())  # pyright: ignore[reportUnknownArgumentType]
        schemas = [*first, *[node.get("items")] * (len(items) - len(first))]
        return [_read(item, each, root) for item, each in zip(items, schemas, strict=False)]
    return _read_scalar(value, node.get("type"))


def _schema_of(name: str, node: dict[str, Any]) -> Any:
    return node.get("properties", {}).get(name, node.get("additionalProperties"))


def _target(reference: str, root: dict[str, Any]) -> Any:
    """Return the schema that the reference names, or None if it is not a path from the root."""
    target: Any = root
    if not reference.startswith("#"):
        return None
    for step in reference[1:].split("/")[1:]:
        key = unquote(step).replace("~1", "/").replace("~0", "~")
        target = cast("dict[str, Any]", target).get(key) if isinstance(target, dict) else None
    return target


def _read_choice(value: Any, choices: Sequence[Any], root: dict[str, Any]) -> Any:
    """Return the value as the first choice reads it that takes it as it is, else the first that can convert it."""
    if not choices:
        return value
    validator = _validator(json.dumps(root))
    for convert in (False, True):
        for choice in choices:
            read = _read(value, choice, root)
            if _is_valid(read if convert else value, choice, validator):
                return read
    return value


def _is_valid(value: Any, schema: Any, validator: Draft202012Validator) -> bool:
    try:
        return bool(validator.evolve(schema=schema).is_valid(value))
    except (re.error, ArithmeticError, ValueError, Unresolvable):
        return False


def _read_scalar(value: Any, kind: Any) -> Any:
    kinds = list[Any](kind) if isinstance(kind, list) else [kind]  # pyright: ignore[reportUnknownArgumentType]
    if _kinds_of(value) & {str(each) for each in kinds}:
        return value
    for name, adapter in _LAX.items():
        if name not in kinds:
            continue
        try:
            read = adapter.validate_python(value)
        except ValidationError:
            continue
        # "nan" is a number for pydantic, but JSON has none.
        return value if isinstance(read, float) and not math.isfinite(read) else read
    return value


def _kinds_of(value: Any) -> set[str]:
    match value:
        case bool():
            return {"boolean"}
        case int():
            return {"integer", "number"}
        case float():
            return {"number"}
        case str():
            return {"string"}
        case _:
            return {"null"}


def _whole_numbers(value: Any) -> Any:
    """Return the value with floats without a fraction as integers, at any depth."""
    if isinstance(value, dict):
        return {key: _whole_numbers(item) for key, item in cast("dict[str, Any]", value).items()}
    if isinstance(value, list):
        return [_whole_numbers(item) for item in list[Any](value)]  # pyright: ignore[reportUnknownArgumentType]
    is_whole = isinstance(value, float) and value.is_integer() and abs(value) < _EXACT_FLOATS
    return int(value) if is_whole else value
