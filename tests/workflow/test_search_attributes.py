"""Search attributes that the namespace has already, with other types."""

import asyncio
from typing import Any

import pytest
from temporalio.common import SearchAttributeKey
from temporalio.testing import WorkflowEnvironment

from perdure import Agent, DefinitionError
from perdure.settings import load_settings
from perdure.testing import ScriptedModel, says
from perdure.workers.dev.server import find_binary
from perdure.workers.observe.doctor import examine
from tests.serving import running

CLERK = Agent(name="clerk", model="scripted:x")


async def test_wrong_attribute_type_refuses_worker() -> None:
    """A worker says which attributes have which wrong types, and does not start; without them it serves."""
    foreign: list[SearchAttributeKey[Any]] = [
        SearchAttributeKey.for_int("AgentStatus"),
        SearchAttributeKey.for_text("AgentUser"),
    ]
    models = {"scripted": ScriptedModel([says("Done.")])}
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=find_binary(), search_attributes=foreign
    ) as server:
        address = server.client.service_client.config.target_host
        # Within a bound: a worker that refused once hung at the end of its block.
        with pytest.raises(DefinitionError, match=r"AgentStatus is Int .*AgentUser is Text .*=false"):
            async with asyncio.timeout(60), running([CLERK], models=models, address=address) as client:
                await client.run("clerk", "Hi.")
        settings = load_settings(address=address, search_attributes=False)
        async with running([CLERK], models=models, address=address, settings=settings) as client:
            assert (await client.run("clerk", "Hi.")).stop_reason == "end_turn"
        found = {finding.name: finding async for finding in examine(load_settings(address=address))}
    assert found["search attributes"].verdict == "fail"
    assert "AgentStatus is Int and must be Keyword" in found["search attributes"].text
