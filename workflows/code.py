"""The functions of a graph, as a run may call them: from the worker, and under the sandbox.

A graph's conditions and input builders are the user's code and run in the workflow. The worker
hands them over as they are; here each is bound anew to what the sandbox gives in place of the
modules it uses, so that a clock, a random number or a file in it is an error at once, and not a
history that cannot be replayed. The user's module itself is not imported again: what it does when
imported, it does once, in the worker.
"""

import builtins
import importlib
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Final

from temporalio import workflow

from perdure.effects import GRAPH_CODE
from perdure.graph import GraphCode
from perdure.spec import AgentSpec, GraphSpec, SwarmSpec

_Function = types.FunctionType
_NAMES: Final = frozenset(sys.stdlib_module_names)


def code_of(spec: AgentSpec | SwarmSpec | GraphSpec) -> GraphCode:
    """The functions of that graph; none of what is no graph, or of one this worker does not serve."""
    if not isinstance(spec, GraphSpec):
        return GraphCode()
    found = workflow.extern_functions().get(GRAPH_CODE)
    code: GraphCode | None = found(spec.name) if found else None
    if code is None:
        return GraphCode()
    return GraphCode(conditions=_all_bound(code.conditions), inputs=_all_bound(code.inputs))


def _all_bound(functions: Mapping[Any, Callable[..., Any]]) -> dict[Any, Callable[..., Any]]:
    known: dict[int, Any] = {}
    return {place: _bound(function, known) for place, function in functions.items()}


def _bound(value: Any, known: dict[int, Any]) -> Any:
    """A function, with the sandbox's modules in place of those it was written with."""
    if not isinstance(value, _Function) or value.__module__.partition(".")[0] in _NAMES:
        return value
    if id(value) in known:
        return known[id(value)]
    names: dict[str, Any] = {"__builtins__": builtins, "__name__": value.__module__}
    made = _Function(value.__code__, names, value.__name__, value.__defaults__, value.__closure__)
    made.__kwdefaults__ = value.__kwdefaults__
    known[id(value)] = made
    for name in _names_in(value.__code__):
        if name in value.__globals__:
            names[name] = _replaced(value.__globals__[name], known)
    return made


def _names_in(code: types.CodeType) -> list[str]:
    inner = [
        name for const in code.co_consts if isinstance(const, types.CodeType) for name in _names_in(const)
    ]
    return list(dict.fromkeys([*code.co_names, *inner]))


def _replaced(value: Any, known: dict[int, Any]) -> Any:
    """What the sandbox has in the place of a module, or of something taken from a module."""
    if isinstance(value, types.ModuleType):
        return importlib.import_module(value.__name__)
    home = getattr(value, "__module__", None)
    name = getattr(value, "__qualname__", "")
    if isinstance(home, str) and home.partition(".")[0] in _NAMES and name.isidentifier():
        return getattr(importlib.import_module(home), name, value)
    return _bound(value, known)
