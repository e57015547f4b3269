"""API objects of the set: how they are created, called, judged by the set's checkers, and digested."""

import copy
import datetime as dt
import hashlib
import importlib
import inspect
import itertools
import json
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import bfcl_eval
from bfcl_eval.constants.executable_backend_config import (
    CLASS_FILE_PATH_MAPPING,
    MULTI_TURN_FUNC_DOC_FILE_MAPPING,
    STATELESS_CLASSES,
)
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_checker import response_checker, state_checker
from bfcl_eval.eval_checker.multi_turn_eval.multi_turn_utils import execute_multi_turn_func_call

DATA = Path(bfcl_eval.__file__).parent / "data"
_NAME = "BFCL_v4_multi_turn_base.json"


def entries() -> dict[str, dict[str, Any]]:
    """Return the tasks of the set, each with its gold calls under "gold"."""
    gold = {answer["id"]: answer["ground_truth"] for answer in lines(DATA / "possible_answer" / _NAME)}
    return {task["id"]: {**task, "gold": gold[task["id"]]} for task in lines(DATA / _NAME)}


def documents(classes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """Return the function documents of these classes."""
    return {
        name: lines(DATA / "multi_turn_func_doc" / MULTI_TURN_FUNC_DOC_FILE_MAPPING[name]) for name in classes
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Objects:
    """API objects of a task, as its conversation finds them."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.instances = {
            name: _create_instance(name, entry["initial_config"]) for name in entry["involved_classes"]
        }

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Carry the call out; return its result, written as the set's own runner writes it."""
        try:
            # Some functions keep their arguments, and change them later.
            value = self._method(name)(**copy.deepcopy(dict(arguments)))
        except Exception as error:
            return f"Error during execution: {error}"
        if isinstance(value, str):
            return value
        if isinstance(value, dict):
            try:
                return json.dumps(value)
            except (TypeError, ValueError):
                return str(value)
        return str(value)

    def parameters(self, name: str) -> list[str]:
        """Return the names of a function's parameters, in order."""
        return list(inspect.signature(self._method(name)).parameters)

    def _method(self, name: str) -> Any:
        # The last class that has it, as the set's own runner chooses.
        found = [
            getattr(instance, name)
            for instance in self.instances.values()
            if not name.startswith("_") and hasattr(instance, name)
        ]
        if not found:
            raise AttributeError(f"there is no function {name!r}")
        return found[-1]

    def digest(self) -> str:
        """Return a digest of all attributes, private ones and random generators included.

        The times at which files were created are left out: they differ in each replay.
        """
        state = {name: _plain(vars(instance), ()) for name, instance in self.instances.items()}
        return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()[:16]


def judge(entry: Mapping[str, Any], objects: Objects, results: Sequence[str]) -> dict[str, Any]:
    """Have the set's own checkers judge objects and results against a replay of the gold calls."""
    replayed: dict[str, Any] = {}
    responses = True
    for number, turn in enumerate(entry["gold"]):
        gold, replayed = execute_multi_turn_func_call(
            turn, entry["initial_config"], entry["involved_classes"], f"gold_{id(objects)}", entry["id"]
        )
        responses = responses and response_checker(list(results), gold, number)["valid"]
    state = state_checker(objects.instances, replayed)
    # Names only: their values are text of the set, which results must not contain.
    differences = "" if state["valid"] else f"differs in {', '.join(state['details']['differences'])}"
    return {"state": state["valid"], "responses": responses, "differences": differences}


def commute(before: Objects, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Check whether the calls give the same results and the same state in every order."""
    seen: set[tuple[tuple[str, ...], str]] = set()
    for order in itertools.permutations(range(len(calls))):
        objects = copy.deepcopy(before)
        results = {n: objects.call(*calls[n]) for n in order}
        seen.add((tuple(results[n] for n in range(len(calls))), objects.digest()))
    return len(seen) == 1


def _create_instance(name: str, config: Mapping[str, Any]) -> Any:
    instance = getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name)()
    if name not in STATELESS_CLASSES:
        instance._load_scenario(copy.deepcopy(config.get(name, {})), long_context=False)
    return instance


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    """Return the value as JSON, objects by their attributes; a cycle is written as its distance upwards."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if id(value) in above:
        return f"up {len(above) - above.index(id(value))}"
    inside = (*above, id(value))
    match value:
        case dict():
            return [[str(key), _plain(item, inside)] for key, item in value.items()]
        case list() | tuple():
            return [_plain(item, inside) for item in value]
        case dt.datetime():
            return "a moment"  # the creation time of a file differs in each replay
        case set() | frozenset():
            return sorted(repr(item) for item in value)
        case random.Random():
            return hashlib.sha256(repr(value.getstate()).encode()).hexdigest()
        case _ if hasattr(value, "__dict__"):
            return {type(value).__name__: _plain(vars(value), inside)}
        case _:
            return repr(value)
