"""Preparation of the catalogue from the installed set: `python -m proofs.chaos.tools.prepare FILE`."""

import copy
import importlib.metadata
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from proofs.chaos.gold import Call, fits, json_schema, parse, widen

from .objects import Objects, commute, documents, entries

_MOST_TOGETHER = 3


def catalogue() -> dict[str, Any]:
    """Return everything that the other processes need to know of the set."""
    tasks = entries()
    classes = sorted({name for entry in tasks.values() for name in entry["involved_classes"]})
    tools = {name: [_tool(document) for document in found] for name, found in documents(classes).items()}
    plain = [_task(entry, tools) for entry in tasks.values()]
    versions = {name: importlib.metadata.version(name) for name in ("bfcl-eval", "mpmath")}
    return {"versions": versions, "tools": tools, "tasks": plain}


def _tool(document: dict[str, Any]) -> dict[str, Any]:
    schema = json_schema(document["parameters"])
    schema.setdefault("properties", {})
    return {"name": document["name"], "description": document["description"], "schema": schema}


def _task(entry: dict[str, Any], tools: dict[str, Any]) -> dict[str, Any]:
    objects = Objects(entry)
    names = [tool["name"] for name in entry["involved_classes"] for tool in tools[name]]
    parameters = {name: objects.parameters(name) for name in names}
    turns: list[dict[str, Any]] = []
    for question, gold in zip(entry["question"], entry["gold"], strict=True):
        calls = [parse(expression, parameters) for expression in gold]
        for call in calls:
            _widen(call, entry["involved_classes"], tools)
        groups = [[_with_result(objects, call) for call in group] for group in _group_calls(objects, calls)]
        turns.append({"question": "\n".join(message["content"] for message in question), "groups": groups})
    return {"id": entry["id"], "classes": entry["involved_classes"], "turns": turns}


def _group_calls(before: Objects, calls: Sequence[Call]) -> list[list[Call]]:
    """Group neighbouring calls whose order makes no difference; keep the order of the groups."""
    objects, groups = copy.deepcopy(before), list[list[Call]]()
    at_group = copy.deepcopy(objects)
    for call in calls:
        joined = [*groups[-1], call] if groups else [call]
        plain = [(member.name, member.arguments) for member in joined]
        # All orders are tried, so a group is kept small.
        if groups and len(joined) <= _MOST_TOGETHER and commute(at_group, plain):
            groups[-1] = joined
        else:
            at_group = copy.deepcopy(objects)
            groups.append([call])
        objects.call(call.name, call.arguments)
    return groups


def _with_result(objects: Objects, call: Call) -> dict[str, Any]:
    result = objects.call(call.name, call.arguments)
    return {"name": call.name, "arguments": call.arguments, "result": result}


def _widen(call: Call, classes: Sequence[str], tools: dict[str, Any]) -> None:
    """Widen the type in the document of a gold call that the document rules out."""
    for tool in (found for name in classes for found in tools[name] if found["name"] == call.name):
        if not all(fits(value, tool["schema"]["properties"][name]) for name, value in call.arguments.items()):
            tool["schema"] = widen(tool["schema"], call.arguments)


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(json.dumps(catalogue()))
