"""Definitions: what users write down is checked when it is made, and refused by `DefinitionError`, in words."""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, fields, is_dataclass
from datetime import timedelta
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Union, cast, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError

from perdure.errors import DefinitionError


def _is_required(field: Any) -> bool:
    return bool(field.init and field.default is MISSING and field.default_factory is MISSING)


_MOST_EXPLAINED: Final = 8
"""Problems of a validation error that its message lists."""
_WORDS: Final[Mapping[type, str]] = {
    str: "text",
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    timedelta: "a timedelta",
    NoneType: "None",
}


if TYPE_CHECKING:

    class Definition:
        """Base of the dataclasses that users make themselves."""

    class DefinitionModel(BaseModel):
        """Base of the pydantic models that users make themselves."""

else:

    class _Definition(type(BaseModel)):
        """Type of definitions: a wrong argument of a constructor is a `DefinitionError`.

        What comes from outside is read by `model_validate`, which does not pass here.
        """

        def __call__(cls, *args: Any, **arguments: Any) -> Any:
            try:
                return super().__call__(*args, **arguments)
            except ValidationError as error:
                raise DefinitionError(f"{cls.__name__}: {explain(error)}") from None

    class DefinitionModel(BaseModel, metaclass=_Definition):
        """Base of the pydantic models that users make themselves."""

    class _Named(type):
        """Type of definitions that are dataclasses: a wrong name of an argument is a `DefinitionError`."""

        def __call__(cls, *args: Any, **arguments: Any) -> Any:
            known = {each.name for each in fields(cls) if each.init} if is_dataclass(cls) else set()
            what = f"{cls.__name__} {arguments.get('name', '')!r}" if "name" in known else cls.__name__
            if known:
                check_names(arguments, known, what)
            missing = [each.name for each in fields(cls) if _is_required(each)][len(args) :] if known else []
            for name in missing:
                if name not in arguments:
                    raise DefinitionError(f"{what}: {name} is missing")
            return super().__call__(*args, **arguments)

    class Definition(metaclass=_Named):
        """Base of the dataclasses that users make themselves."""


def check_names(given: Iterable[str], known: Collection[str], what: str) -> None:
    """Check that each name that was given is known. `what` names the definition in the error.

    Raises:
        DefinitionError: one is not; the message has the name that is nearest.

    """
    for name in given:
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; there are: {', '.join(sorted(known))}"
            raise DefinitionError(f"{what}: there is no setting {name!r}{hint}")


def check_types(definition: Any, what: str) -> None:
    """Check the fields of a dataclass whose types are classes, such as text, numbers and limits.

    `what` names the definition in the error.

    Raises:
        DefinitionError: a field has a value of another type.

    """
    for name, kinds in _classes_of(definition).items():
        value = getattr(definition, name)
        # True is an int for Python, and no number for people.
        if not isinstance(value, kinds) or (isinstance(value, bool) and bool not in kinds):
            named = [kind for kind in kinds if kind is not int or float not in kinds]
            wanted = " or ".join(_WORDS.get(kind, kind.__name__) for kind in named)
            raise DefinitionError(f"{what}: {name} must be {wanted}, not {value!r}")


def _classes_of(definition: Any) -> Mapping[str, tuple[type, ...]]:
    """Return the classes of each field that is checked by them."""
    hints = get_type_hints(cast(type[object], type(definition)))
    found = {field.name: _classes_in(hints[field.name]) for field in fields(definition) if field.init}
    return {name: classes for name, classes in found.items() if classes}


def _classes_in(hint: Any) -> tuple[type, ...]:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    # Literals, functions, protocols and containers have checks of their own.
    if not all(isinstance(part, type) and not get_origin(part) and _is_checked(part) for part in parts):
        return ()
    return (*parts, int) if float in parts else parts


def _is_checked(kind: type) -> bool:
    return kind is not Any and not getattr(kind, "_is_protocol", False)


def explain(error: ValidationError) -> str:
    """Return a validation error in one line of bounded length: field, problem and value, for each."""
    # Bounded throughout: the text may quote what a model wrote, and goes into history.
    details = error.errors(include_url=False)
    problems = [
        f"{_cut('.'.join(str(step) for step in problem['loc']) or 'value')}: "
        f"{_cut(problem['msg'], 300)} (got {_cut(repr(problem.get('input')))})"
        for problem in details[:_MOST_EXPLAINED]
    ]
    more = len(details) - len(problems)
    return "; ".join([*problems, f"and {more} more"] if more else problems)


def _cut(text: str, most: int = 80) -> str:
    return text if len(text) < most else f"{text[: most - 3]}..."
