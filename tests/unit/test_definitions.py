"""Whatever is wrong in a definition is told by a DefinitionError when it is made, or when its worker starts."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest

from perdure import (
    Agent,
    DefinitionError,
    Edge,
    Graph,
    Limits,
    ModelConfig,
    Policy,
    Rule,
    Swarm,
    tool,
)
from perdure.context import SlidingWindow, Summary
from perdure.fallbacks import Fallback, ToolFallback
from perdure.graph import Node
from perdure.limits import GraphLimits, SwarmLimits
from perdure.retries import ToolRetry
from perdure.tools import RemoteTool


def wrong(value: Any = None) -> Any:
    """Return a value that no type checker would let pass."""
    return value


def agent(**fields: Any) -> Agent:
    named: dict[str, Any] = {"name": "clerk", "model": "scripted:x", **fields}
    return Agent(**named)


def give_text() -> str:
    """Give text."""
    return ""


WRONG: dict[str, tuple[Callable[[], Any], str]] = {
    "instructions": (
        lambda: agent(instructions=7),
        "agent 'clerk': instructions must be text, or a function that gives it, not 7",
    ),
    "description": (lambda: agent(description=None), "description must be text, not None"),
    "name": (lambda: agent(name=5), "agent 5: name must be text, not 5"),
    "limits": (lambda: agent(limits={"steps": 3}), r"limits must be Limits, not \{'steps': 3\}"),
    "policy": (lambda: agent(policy=[]), r"policy must be Policy or None, not \[\]"),
    "context": (lambda: agent(context="all"), "context must be SlidingWindow or Summary, not 'all'"),
    "planning": (lambda: agent(planning="yes"), "planning must be True or False, not 'yes'"),
    "whole number": (
        lambda: agent(tool_concurrency=True),
        "tool_concurrency must be a whole number, not True",
    ),
    "no steps": (lambda: Limits(steps=0), r"Limits: steps: .* greater than or equal to 1 \(got 0\)"),
    "unknown limit": (lambda: wrong(Limits)(stepz=1), "Limits: stepz: "),
    "span": (lambda: SwarmLimits(node_timeout=timedelta()), "SwarmLimits: node_timeout: "),
    "graph limit": (lambda: GraphLimits(max_node_executions=0), "GraphLimits: max_node_executions: "),
    "model": (lambda: ModelConfig(name="gpt"), 'ModelConfig: name: .* write the model as "provider:model"'),
    "temperature": (lambda: ModelConfig(name="a:b", temperature=-1), "ModelConfig: temperature: "),
    "verdict": (lambda: Rule(verdict=wrong("maybe")), "Rule: verdict: "),
    "rules": (
        lambda: Policy(rules=wrong(frozenset[Any]())),
        "the first match wins, and a set has no order",
    ),
    "window": (lambda: SlidingWindow(messages=1), "SlidingWindow: messages: "),
    "summary": (lambda: Summary(model="gpt"), "Summary: model: "),
    "retry": (lambda: ToolRetry(attempts=wrong("3")), "ToolRetry: attempts must be a whole number, not '3'"),
    "backoff": (lambda: ToolRetry(backoff=wrong("2")), "ToolRetry: backoff must be a number, not '2'"),
    "fallback": (lambda: Fallback(model=wrong()), "Fallback: model must be text or ModelConfig, not None"),
    "stand-in": (lambda: ToolFallback(answer=wrong(5)), "ToolFallback: answer must be text or None, not 5"),
    "timeout": (
        lambda: tool(timeout=wrong(5))(give_text),
        "tool 'give_text': timeout must be a timedelta, not 5",
    ),
    "effect": (
        lambda: tool(effect=wrong("wirte"))(give_text),
        "effect must be 'read' or 'write', not 'wirte'",
    ),
    "remote": (
        lambda: RemoteTool(name="away", description="x", input_schema={"type": "object"}, task_queue=wrong()),
        "tool 'away': task_queue must be text, not None",
    ),
    "swarm": (lambda: Swarm(name="team", agents=[agent()], description=wrong()), "swarm 'team': description"),
    "graph": (
        lambda: Graph(name="g", nodes={"a": agent()}, entry="a", concurrency=wrong("2")),
        "graph 'g': concurrency",
    ),
    "node": (
        lambda: Node(agent(), retries=wrong("1")),
        r"Node\('clerk'\): retries must be a whole number, not '1'",
    ),
    "edge": (lambda: Edge("a", wrong()), "edge 'a' -> None: target must be text, not None"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_definition_is_told_at_once(name: str) -> None:
    """The error is Perdure's own, and names what is wrong, which value it has, and what fits."""
    make, words = WRONG[name]
    with pytest.raises(DefinitionError, match=words):
        make()


def test_limits_from_outside_are_checked_as_before() -> None:
    """What comes in a request is read by `model_validate`, whose error each reader puts into its own words."""
    with pytest.raises(ValueError, match="greater than or equal to 1"):
        Limits.model_validate({"steps": 0})
