"""Hashes of specs that are the same in every process, whatever order its sets have."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from perdure.policy import Policy, Rule

AGENTS = """
import json
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, field_serializer

from perdure import Agent, ModelConfig, tool

TAGS = frozenset({"red", "green", "blue", "black", "white"})


class Filter(BaseModel):
    tags: set[str] = set(TAGS)

class Mistyped(BaseModel):
    tags: list[str] = TAGS
    anything: Any = TAGS

class Serialized(BaseModel):
    tags: set[str] = set(TAGS)

    @field_serializer("tags")
    def as_list(self, tags: set[str]) -> list[str]:
        return list(tags)

class Aliased(BaseModel):
    tags: set[str] = Field(set(TAGS), alias="colours")

class Extra(BaseModel):
    model_config = ConfigDict(json_schema_extra={"x-tags": TAGS})

    inner: Filter = Filter()

@dataclass
class Plain:
    tags: frozenset[str] = TAGS

class Ordered(BaseModel):
    tags: list[str] = ["red", "black", "green"]


def in_a_model(filter: Filter = Filter()) -> None:
    "Search."

def in_a_mapping(by: dict[str, set[tuple[int, str]]] = {"a": {(1, "b"), (2, "c"), (3, "d")}}) -> None:
    "Search."

def in_a_list(each: list[set[str]] = [set(TAGS), set(TAGS)]) -> None:
    "Search."

def in_a_dataclass(plain: Plain = Plain()) -> None:
    "Search."

def with_another_type(filter: Mistyped = Mistyped()) -> None:
    "Search."

def with_a_serializer(filter: Serialized = Serialized()) -> None:
    "Search."

def with_an_alias(filter: Aliased = Aliased()) -> None:
    "Search."

def of_two_types(tags: set[int | str] = {1, "a", 2, "b"}) -> None:
    "Search."

def in_an_example(tags: Annotated[set[str] | None, Field(examples=[TAGS])] = None) -> None:
    "Search."

def in_an_extra(extra: Extra = Extra()) -> None:
    "Search."


tools = [
    in_a_model, in_a_mapping, in_a_list, in_a_dataclass, with_another_type, with_a_serializer, with_an_alias,
    of_two_types, in_an_example, in_an_extra,
]
specs = {each.__name__: Agent(name="a", model="scripted:x", tools=[tool(each)]).spec() for each in tools}
specs["output"] = Agent(name="a", model="scripted:x", output_type=Extra).spec()
specs["stops"] = Agent(name="a", model=ModelConfig(name="scripted:x", stop_sequences=TAGS)).spec()
ordered = Agent(name="a", model="scripted:x", output_type=Ordered).output_schema()
print(json.dumps([{name: spec.hash for name, spec in specs.items()}, ordered["properties"]["tags"]["default"]]))
"""


def _output(path: Path, seed: int) -> str:
    env = {**os.environ, "PYTHONHASHSEED": str(seed)}
    command = [sys.executable, "-W", "ignore", str(path)]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout


def test_spec_hash_ignores_set_order(tmp_path: Path) -> None:
    """Sets in defaults, examples and extras give an agent one hash; lists keep their order."""
    path = tmp_path / "agents.py"
    path.write_text(AGENTS)
    outputs = [_output(path, seed) for seed in (1, 2, 3)]
    assert outputs == [outputs[0]] * 3
    assert '["red", "black", "green"]' in outputs[0]


def test_rules_in_a_set_are_refused() -> None:
    """The first rule that matches wins, so rules without an order have no meaning."""
    with pytest.raises(ValueError, match="a set has no order"):
        Policy.model_validate({"rules": frozenset([Rule(verdict="allow"), Rule(verdict="deny")])})
