"""The functions of a graph, as a run may call them: from the worker, and under the sandbox.

A graph's conditions and input builders are the user's code and run in the workflow. The worker
hands them over as they are; here each is bound anew to what the sandbox gives in place of the
modules it uses, so that a clock, a random number or a file in it is an error at once, and not a
history that cannot be replayed. The user's module itself is not imported again: what it does when
imported, it does once, in the worker.
"""

import builtins
import contextlib
import functools
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Final, cast

from temporalio import workflow

from perdure.graph import GraphCode
from perdure.wire.names import GRAPH_CODE
from perdure.wire.spec import GraphSpec

_NAMES: Final = frozenset(sys.stdlib_module_names)


def code_of(spec: GraphSpec) -> GraphCode:
    """The functions of that graph; none of one that this worker does not serve."""
    found = cast("Callable[[str], GraphCode | None] | None", workflow.extern_functions().get(GRAPH_CODE))
    code = found(spec.name) if found else None
    if code is None:
        return GraphCode()
    return GraphCode(conditions=_all_bound(code.conditions), inputs=_all_bound(code.inputs))


def _all_bound(functions: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    known: dict[int, Any] = {}
    return {place: _bound_or_failing(function, known) for place, function in functions.items()}


def _bound_or_failing(function: Callable[..., Any], known: dict[int, Any]) -> Callable[..., Any]:
    """A function that cannot be bound fails when it is called, with the reason, and not the whole run."""
    try:
        bound: Callable[..., Any] = _bound(function, known)
    except Exception as error:
        problem = f"it cannot be run in a workflow: {type(error).__name__}: {error}"

        def fail(_: object) -> None:
            raise RuntimeError(problem)

        return fail
    return bound


def _bound(value: Any, known: dict[int, Any]) -> Any:
    """What the sandbox has in the place of a value that a function uses, or the value itself.

    Followed are modules and what was taken from the standard library, functions with their globals,
    defaults and closures, partials, bound methods and objects that can be called. Methods of
    classes are not looked into.
    """
    match value:
        case types.ModuleType():
            return _module(value, known)
        case types.FunctionType():
            return _function(value, known)
        case functools.partial():
            arguments = [_bound(one, known) for one in value.args]  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
            return functools.partial(_bound(value.func, known), *arguments, **value.keywords)  # pyright: ignore[reportUnknownMemberType]
        case types.MethodType():
            return _method(value, known)
        case types.BuiltinFunctionType():
            return _of_library(type(value.__self__).__module__, value.__name__, value) or value
        case type():
            return _of_library(value.__module__, value.__qualname__, value) or value  # pyright: ignore[reportUnknownArgumentType]
        case _:
            return _object(value, known)


def _object(value: Any, known: dict[int, Any]) -> Any:
    """An object of the user's that can be called, its own function bound."""
    call: Any = vars(type(value)).get("__call__")  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(call, types.FunctionType) and not _is_foreign(call):
        return types.MethodType(_function(call, known), value)
    return value


class _Module:
    """A module of the user's, as its functions see it when they are bound."""

    def __init__(self, module: types.ModuleType, known: dict[int, Any]) -> None:
        self._module = module
        self._known = known

    def __getattr__(self, name: str) -> Any:
        return _bound(getattr(self._module, name), self._known)


def _module(module: types.ModuleType, known: dict[int, Any]) -> Any:
    """The sandbox's in place of one of the standard library; the user's own is looked through."""
    if module.__name__.partition(".")[0] in _NAMES:
        return __import__(module.__name__, fromlist=["_"])
    place = getattr(module, "__file__", None) or ""
    foreign = "site-packages" in place or not place or module.__name__.partition(".")[0] == "perdure"
    return module if foreign else _Module(module, known)


def _of_library(home: str | None, name: str, value: Any) -> Any:
    """The same thing of the standard library, as the sandbox gives it."""
    for module in (getattr(value, "__module__", None), home):
        if not isinstance(module, str) or module.partition(".")[0] not in _NAMES or not name.isidentifier():
            continue
        found = getattr(__import__(module, fromlist=["_"]), name, None)
        if found is not None:
            return found
    return None


def _is_foreign(function: types.FunctionType) -> bool:
    """Whether it is a library's, or ours: only the user's own code decides here."""
    library = "site-packages" in function.__code__.co_filename
    return library or str(function.__module__).partition(".")[0] in ("perdure", *_NAMES)


def _function(function: types.FunctionType, known: dict[int, Any]) -> Any:
    if id(function) in known:
        return known[id(function)]
    if _is_foreign(function):
        return _of_library(function.__module__, function.__qualname__, function) or function
    names: dict[str, Any] = {"__builtins__": builtins, "__name__": function.__module__}
    cells = tuple(types.CellType() for _ in function.__closure__ or ())
    made = types.FunctionType(function.__code__, names, function.__name__, None, cells)
    known[id(function)] = made  # before what it uses: it may use itself
    for cell, kept in zip(cells, function.__closure__ or (), strict=True):
        with contextlib.suppress(ValueError):  # a name that was never given a value
            cell.cell_contents = _bound(kept.cell_contents, known)
    made.__defaults__ = _all(function.__defaults__, known)
    defaults = function.__kwdefaults__
    made.__kwdefaults__ = {name: _bound(value, known) for name, value in (defaults or {}).items()}
    for name in _names_in(function.__code__):
        if name in function.__globals__:
            names[name] = _bound(function.__globals__[name], known)
    return made


def _all(values: tuple[Any, ...] | None, known: dict[int, Any]) -> tuple[Any, ...] | None:
    return None if values is None else tuple(_bound(value, known) for value in values)


def _method(method: types.MethodType, known: dict[int, Any]) -> Any:
    """A method of the user's object, its function bound; of a library's, such as random.choice, theirs."""
    library = _of_library(type(method.__self__).__module__, method.__name__, method)
    if library is not None:
        return library
    return types.MethodType(_bound(method.__func__, known), method.__self__)


def _names_in(code: types.CodeType) -> list[str]:
    inner = [const for const in code.co_consts if isinstance(const, types.CodeType)]
    return list(dict.fromkeys([*code.co_names, *(name for one in inner for name in _names_in(one))]))
