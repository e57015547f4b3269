"""Agents and their tools: one agent for each combination of APIs."""

import os
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx2
from openai import AsyncOpenAI
from pydantic_ai import Agent, Tool
from pydantic_ai.durable_exec.temporal import TemporalDurability
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from temporalio import activity
from temporalio.workflow import ActivityConfig

from proofs.chaos.catalogue import agent_name, load
from proofs.chaos.subjects import MODEL_TIMEOUT_SECONDS, TOOL_TIMEOUT_SECONDS

_HTTP = httpx2.AsyncClient(
    base_url=os.environ["CHAOS_TOOLS"],
    timeout=TOOL_TIMEOUT_SECONDS + 60.0,
    headers={"X-Worker": os.environ["CHAOS_WORKER"]},
)
_MODEL = OpenAIChatModel("scripted", provider=OpenAIProvider(openai_client=AsyncOpenAI(max_retries=0)))


def _tool(document: dict[str, Any]) -> Tool[None]:
    name = document["name"]

    async def call(**arguments: Any) -> str:
        info = activity.info()
        answer = await _HTTP.post(
            "/call",
            json={"task": info.workflow_id, "name": name, "arguments": arguments},
            headers={"Idempotency-Key": f"{info.workflow_run_id}/{info.activity_id}"},
        )
        answer.raise_for_status()
        return answer.text

    return Tool.from_schema(call, name, document["description"], document["schema"])


def _agent(classes: tuple[str, ...]) -> Agent[None, str]:
    durability = TemporalDurability[None](
        activity_config=ActivityConfig(start_to_close_timeout=timedelta(seconds=TOOL_TIMEOUT_SECONDS)),
        model_activity_config=ActivityConfig(start_to_close_timeout=timedelta(seconds=MODEL_TIMEOUT_SECONDS)),
    )
    return Agent(
        _MODEL,
        name=agent_name(classes),
        instructions="You do what you are asked to, with your tools.",
        tools=[_tool(document) for document in CATALOGUE.tools_of(classes)],
        capabilities=[durability],
    )


CATALOGUE = load(Path(os.environ["CHAOS_CATALOGUE"]))
AGENTS = {classes: _agent(classes) for classes in CATALOGUE.combinations}
