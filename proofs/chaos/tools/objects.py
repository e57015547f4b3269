"""The set's API objects: made, called, compared by the set's own checker, and written down whole."""

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
    """The tasks of the set, each with its gold calls under "gold"."""
    gold = {one["id"]: one["ground_truth"] for one in lines(DATA / "possible_answer" / _NAME)}
    return {one["id"]: {**one, "gold": gold[one["id"]]} for one in lines(DATA / _NAME)}


def documents(classes: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """The function documents of these classes."""
    return {
        name: lines(DATA / "multi_turn_func_doc" / MULTI_TURN_FUNC_DOC_FILE_MAPPING[name]) for name in classes
    }


def lines(path: Path) -> list[dict[str, Any]]:
    """A file of JSON lines."""
    return [json.loads(line) for line in path.read_text().splitlines()]


class Objects:
    """The API objects of one task, as its conversation finds them."""

    def __init__(self, entry: Mapping[str, Any]) -> None:
        self.instances = {name: _made(name, entry["initial_config"]) for name in entry["involved_classes"]}

    def call(self, name: str, arguments: Mapping[str, Any]) -> str:
        """Do what the call says; what it gives, written as the set's own runner writes it."""
        try:
            # Some functions keep what they are given, and change it later.
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
        """The names of a function's parameters, in order."""
        return list(inspect.signature(self._method(name)).parameters)

    def _method(self, name: str) -> Any:
        # The last class that has it, as the set's own runner chooses.
        found = [
            getattr(one, name)
            for one in self.instances.values()
            if not name.startswith("_") and hasattr(one, name)
        ]
        if not found:
            raise AttributeError(f"there is no function {name!r}")
        return found[-1]

    def digest(self) -> str:
        """A digest of all that the objects hold, private attributes and random generators included; not the
        times at which files were made.
        """
        whole = {name: _plain(vars(one), ()) for name, one in self.instances.items()}
        return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:16]


def judged(entry: Mapping[str, Any], objects: Objects, results: Sequence[str]) -> dict[str, Any]:
    """What the set's own checkers say of objects and results, against a replay of the gold calls."""
    replayed: dict[str, Any] = {}
    responses = True
    for number, turn in enumerate(entry["gold"]):
        gold, replayed = execute_multi_turn_func_call(
            turn, entry["initial_config"], entry["involved_classes"], f"gold_{id(objects)}", entry["id"]
        )
        responses = responses and response_checker(list(results), gold, number)["valid"]
    state = state_checker(objects.instances, replayed)
    # Names only: what they hold are the set's own words, which are not kept in results.
    said = "" if state["valid"] else f"differs in {', '.join(state['details']['differences'])}"
    return {"state": state["valid"], "responses": responses, "differences": said}


def commute(before: Objects, calls: Sequence[tuple[str, Mapping[str, Any]]]) -> bool:
    """Whether the calls give the same results and the same state in every order."""
    seen: set[tuple[tuple[str, ...], str]] = set()
    for order in itertools.permutations(range(len(calls))):
        objects = copy.deepcopy(before)
        results = {n: objects.call(*calls[n]) for n in order}
        seen.add((tuple(results[n] for n in range(len(calls))), objects.digest()))
    return len(seen) == 1


def _made(name: str, config: Mapping[str, Any]) -> Any:
    instance = getattr(importlib.import_module(CLASS_FILE_PATH_MAPPING[name]), name)()
    if name not in STATELESS_CLASSES:
        instance._load_scenario(copy.deepcopy(config.get(name, {})), long_context=False)
    return instance


def _plain(value: Any, above: tuple[int, ...]) -> Any:
    """The value as JSON; objects by their attributes. What contains itself is told by how far up it is."""
    if value is None or isinstance(value, str | int | float | bool):
        return value
    if id(value) in above:
        return f"up {len(above) - above.index(id(value))}"
    inside = (*above, id(value))
    match value:
        case dict():
            return [[str(key), _plain(one, inside)] for key, one in value.items()]
        case list() | tuple():
            return [_plain(one, inside) for one in value]
        case dt.datetime():
            return "a moment"  # when a file was made: another in each replay
        case set() | frozenset():
            return sorted(repr(one) for one in value)
        case random.Random():
            return hashlib.sha256(repr(value.getstate()).encode()).hexdigest()
        case _ if hasattr(value, "__dict__"):
            return {type(value).__name__: _plain(vars(value), inside)}
        case _:
            return repr(value)
