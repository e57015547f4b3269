"""Functions of graphs and schedulers of patterns, bound to the workflow sandbox.

A graph's conditions and input builders are the user's code and run in the workflow, and so is a pattern's scheduler.
The worker hands them over as they are. Here each is bound again, to the modules that the sandbox gives. So a clock,
a random number or a file in it is an error at once, and not a history that cannot be replayed.

The user's module is not imported again in the sandbox: what its import does, it does once, in the worker.
Binding copies functions instead, with their globals, defaults and closures replaced.
"""

import builtins
import contextlib
import copy
import functools
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from temporalio import workflow

from perdure.graph import GraphCode
from perdure.scheduling import Scheduler
from perdure.wire.names import GRAPH_CODE, SCHEDULERS
from perdure.wire.spec import GraphSpec, PatternSpec

from .engine.programs import no_scheduler

_STANDARD_LIBRARY: Final = frozenset(sys.stdlib_module_names)


def functions_of(spec: GraphSpec) -> GraphCode:
    """Return the graph's bound functions; none for a graph that this worker does not serve."""
    lookup = cast("Callable[[str], GraphCode | None] | None", workflow.extern_functions().get(GRAPH_CODE))
    code = lookup(spec.name) if lookup else None
    if code is None:
        return GraphCode()
    return GraphCode(conditions=_bind_functions(code.conditions), inputs=_bind_functions(code.inputs))


def scheduler_of(spec: PatternSpec) -> Scheduler[Any]:
    """Return the pattern's bound scheduler.

    Raises:
        MissingCode: this worker does not serve the pattern.

    """
    lookup = cast("Callable[[str], Any] | None", workflow.extern_functions().get(SCHEDULERS))
    factory = lookup(spec.pattern) if lookup else None
    if factory is None:
        return no_scheduler(spec)
    bound: dict[int, Any] = {}
    return cast("Scheduler[Any]", _bind_methods(_bind(factory, bound)(spec), bound))


def _bind_methods(value: Any, bound: dict[int, Any]) -> Any:
    """Return a copy of the user's object whose methods and properties are bound, its inherited ones included."""
    own: type[Any] = value.__class__
    attributes: dict[str, Any] = {}
    for base in reversed(own.__mro__):
        for name, attribute in vars(base).items():
            # An attribute that overrides a method must not be hidden by the method's bound copy.
            attributes.pop(name, None)
            if not name.startswith("__") and (method := _bind_attribute(attribute, bound)) is not None:
                attributes[name] = method
    # Without new slots, or an object of the one class could not become one of the other.
    space = {"__slots__": (), "__module__": own.__module__, **attributes}
    made = types.new_class(own.__name__, (own,), exec_body=lambda names: names.update(space))
    result = copy.copy(value)
    object.__setattr__(result, "__class__", made)
    return result


def _bind_attribute(attribute: Any, bound: dict[int, Any]) -> Any:
    """Return the bound attribute of a class; None for a value, which needs no binding."""
    match attribute:
        case types.FunctionType() if not _is_foreign(attribute):
            return _bind_function(attribute, bound)
        case property():
            return property(_bind(attribute.fget, bound))
        case staticmethod():
            return staticmethod(_bind(attribute.__func__, bound))  # pyright: ignore[reportUnknownMemberType]
        case classmethod():
            return classmethod(_bind(attribute.__func__, bound))  # pyright: ignore[reportUnknownMemberType]
        case _:
            return None


def _bind_functions(functions: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    bound: dict[int, Any] = {}
    return {key: _bind_or_fail_later(function, bound) for key, function in functions.items()}


def _bind_or_fail_later(function: Callable[..., Any], bound: dict[int, Any]) -> Callable[..., Any]:
    """Return the bound function; if it cannot be bound, one that raises the reason when it is called.

    So the graph fails with a message where the function is used, and the workflow task does not.
    """
    try:
        result: Callable[..., Any] = _bind(function, bound)
    except Exception as error:
        problem = f"it cannot be run in a workflow: {type(error).__name__}: {error}"

        def fail(_: object) -> None:
            raise RuntimeError(problem)

        return fail
    return result


def _bind(value: Any, bound: dict[int, Any]) -> Any:
    """Return the sandbox's counterpart of a value that a function uses, or the value itself.

    Bound are modules and objects of the standard library, functions with their globals, defaults and
    closures, partials, methods and callable objects. Methods within classes are not. `bound` holds the
    functions bound so far, by id.
    """
    match value:
        case types.ModuleType():
            return _bind_module(value, bound)
        case types.FunctionType():
            return _bind_function(value, bound)
        case functools.partial():
            arguments = [_bind(argument, bound) for argument in value.args]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            return functools.partial(_bind(value.func, bound), *arguments, **value.keywords)  # pyright: ignore[reportUnknownMemberType]
        case types.MethodType():
            return _bind_method(value, bound)
        case types.BuiltinFunctionType():
            return _from_library(type(value.__self__).__module__, value.__name__, value) or value
        case type():
            return _from_library(value.__module__, value.__qualname__, value) or value  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return _bind_object(value, bound)


def _bind_object(value: Any, bound: dict[int, Any]) -> Any:
    """Return the bound `__call__` of the user's callable object; any other object as it is."""
    call: Any = vars(type(value)).get("__call__")  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(call, types.FunctionType) and not _is_foreign(call):
        return types.MethodType(_bind_function(call, bound), value)
    return value


class _Module:
    """Proxy of the user's module that binds each attribute when it is read."""

    def __init__(self, module: types.ModuleType, bound: dict[int, Any]) -> None:
        self._module = module
        self._bound = bound

    def __getattr__(self, name: str) -> Any:
        return _bind(getattr(self._module, name), self._bound)


def _bind_module(module: types.ModuleType, bound: dict[int, Any]) -> Any:
    """Return the sandbox's module of the standard library, a proxy of the user's, or a library's as it is."""
    if module.__name__.partition(".")[0] in _STANDARD_LIBRARY:
        # By __import__, because that is the function that the sandbox replaces.
        return __import__(module.__name__, fromlist=["_"])
    path = getattr(module, "__file__", None) or ""
    is_foreign = "site-packages" in path or not path or module.__name__.partition(".")[0] == "perdure"
    return module if is_foreign else _Module(module, bound)


def _from_library(home: str | None, name: str, value: Any) -> Any:
    """Return the object of this name in the sandbox's standard library, or None."""
    for module in (getattr(value, "__module__", None), home):
        if (
            not isinstance(module, str)
            or module.partition(".")[0] not in _STANDARD_LIBRARY
            or not name.isidentifier()
        ):
            continue
        found = getattr(__import__(module, fromlist=["_"]), name, None)
        if found is not None:
            return found
    return None


def _is_foreign(function: types.FunctionType) -> bool:
    """Check whether the function is of a library or ours: only the user's own code is bound."""
    library = "site-packages" in function.__code__.co_filename
    return library or str(function.__module__).partition(".")[0] in ("perdure", *_STANDARD_LIBRARY)


def _bind_function(function: types.FunctionType, bound: dict[int, Any]) -> Any:
    """Return a copy of the user's function with everything it uses bound."""
    if id(function) in bound:
        return bound[id(function)]
    if _is_foreign(function):
        return _from_library(function.__module__, function.__qualname__, function) or function
    names: dict[str, Any] = {"__builtins__": builtins, "__name__": function.__module__}
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    copy = types.FunctionType(function.__code__, names, function.__name__, None, cells)
    # Entered before the values it uses are bound, because a function may use itself.
    bound[id(function)] = copy
    for cell, original in zip(cells, function.__closure__ or (), strict=True):
        # An empty cell raises: its variable has no value yet.
        with contextlib.suppress(ValueError):
            cell.cell_contents = _bind(original.cell_contents, bound)
    copy.__defaults__ = _bind_values(function.__defaults__, bound)
    defaults = function.__kwdefaults__
    copy.__kwdefaults__ = {name: _bind(value, bound) for name, value in (defaults or {}).items()}
    for name in _names_in(function.__code__):
        if name in function.__globals__:
            names[name] = _bind(function.__globals__[name], bound)
    return copy


def _bind_values(values: tuple[Any, ...] | None, bound: dict[int, Any]) -> tuple[Any, ...] | None:
    return None if values is None else tuple(_bind(value, bound) for value in values)


def _bind_method(method: types.MethodType, bound: dict[int, Any]) -> Any:
    """Return the user's method with its function bound; a library's, such as random.choice, from there."""
    library = _from_library(type(method.__self__).__module__, method.__name__, method)
    if library is not None:
        return library
    return types.MethodType(_bind(method.__func__, bound), method.__self__)


def _names_in(code: types.CodeType) -> list[str]:
    """Return the global names that the code uses, those of its inner functions included."""
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return list(dict.fromkeys([*code.co_names, *(name for child in inner for name in _names_in(child))]))
