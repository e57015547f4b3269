"""Agents as a worker serves them: `python -m perdure.workers proofs.chaos.subjects.perdure.agents`."""

import inspect
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import httpx2
from pydantic import Field

from perdure import Agent, Limits, RetryableToolError, ToolContext, tool
from perdure.model import ModelConfig
from perdure.retries import ToolRetry
from perdure.tools import Tool
from proofs.chaos.catalogue import PLAIN, agent_name, load
from proofs.chaos.subjects import ABOUT_MODELS, ABOUT_TOOLS, MODEL_TIMEOUT_SECONDS, TOOL_TIMEOUT_SECONDS

_HTTP = httpx2.AsyncClient(
    base_url=os.environ["CHAOS_TOOLS"],
    timeout=TOOL_TIMEOUT_SECONDS + 60.0,  # longer than Perdure's own timeout, which is under test
    headers={"X-Worker": os.environ["CHAOS_WORKER"]},
)


_KIND = os.environ["CHAOS_KIND"]
# The product's defaults, but where the fault itself lasts longer than they allow.
_TOOL_SETTINGS: dict[str, Any] = (
    {
        "timeout": timedelta(seconds=TOOL_TIMEOUT_SECONDS),
        "retry": ToolRetry(
            attempts=60, initial_interval=timedelta(seconds=0.5), maximum_interval=timedelta(seconds=2)
        ),
    }
    if _KIND in ABOUT_TOOLS
    else {}
)
_MODEL_SETTINGS: dict[str, Any] = (
    {"timeout": timedelta(seconds=MODEL_TIMEOUT_SECONDS)} if _KIND in ABOUT_MODELS else {}
)


def _build_tool(document: dict[str, Any]) -> Tool:
    """Build a tool that calls the document's function over HTTP, under its idempotency key."""
    name = document["name"]

    async def call(context: ToolContext, **arguments: Any) -> str:
        present = {key: value for key, value in arguments.items() if value is not None}
        try:
            answer = await _HTTP.post(
                "/call",
                json={"task": context.context["task"], "name": name, "arguments": present},
                headers={"Idempotency-Key": context.idempotency_key},
            )
        except httpx2.TransportError as error:
            raise RetryableToolError(f"the tools were not reached: {error!r}") from error
        answer.raise_for_status()
        return answer.text

    hints = _hints(document["schema"])
    context = inspect.Parameter("context", inspect.Parameter.KEYWORD_ONLY, annotation=ToolContext)
    required = document["schema"].get("required", [])
    parameters = [
        inspect.Parameter(
            parameter,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=hint,
            default=inspect.Parameter.empty if parameter in required else None,
        )
        for parameter, hint in hints.items()
    ]
    function: Any = call
    function.__name__ = name
    # Perdure derives a tool's schema from its signature, so the signature is built from the set's schema.
    function.__signature__ = inspect.Signature([context, *parameters])
    function.__annotations__ = {"context": ToolContext, **hints}
    decorate = tool(name=name, description=document["description"], effect="write", **_TOOL_SETTINGS)
    function.__doc__ = document["description"]
    return decorate(function)


def _hints(schema: dict[str, Any]) -> dict[str, Any]:
    required = schema.get("required", [])
    hints: dict[str, Any] = {}
    for name, parameter in schema["properties"].items():
        hint = _hint(parameter) if name in required else _hint(parameter) | None
        hints[name] = Annotated[hint, Field(description=parameter.get("description", name))]
    return hints


def _hint(schema: dict[str, Any]) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        return int | str
    if kind == "array":
        of_items: Any = _hint(schema.get("items", {}))
        return list[of_items]
    return PLAIN.get(str(kind), Any)


def _agent(name: str, documents: list[dict[str, Any]]) -> Agent:
    return Agent(
        name=name,
        model=ModelConfig(name="openai:scripted", **_MODEL_SETTINGS),
        instructions="You do what you are asked to, with your tools.",
        tools=[_build_tool(document) for document in documents],
        limits=Limits(steps=None),
    )


def _slow_disk(seconds: float) -> None:
    """Delay each `fsync` of this process."""
    original = os.fsync

    def slow(handle: int) -> None:
        time.sleep(seconds)
        original(handle)

    os.fsync = slow  # type: ignore[assignment]


if delay := float(os.environ.get("CHAOS_FSYNC_SECONDS", "0")):
    _slow_disk(delay)

_CATALOGUE = load(Path(os.environ["CHAOS_CATALOGUE"]))
AGENTS = [_agent(agent_name(classes), _CATALOGUE.tools_of(classes)) for classes in _CATALOGUE.combinations]
# The worker serves the agents that it finds as names of this module.
globals().update({agent.name: agent for agent in AGENTS})
