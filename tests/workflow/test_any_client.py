"""Clients and workers without Perdure, at any size: what is meant for them is never in the blob store."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.client import Client, WorkflowFailureError
from temporalio.converter import DataConverter, PayloadCodec
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from perdure import Agent, PerdurePlugin, RemoteTool, tool
from perdure.settings import Settings
from perdure.testing import ScriptedModel, calls, fails, says
from perdure.wire.effects import RemoteArguments
from perdure.workers.converter import MOST_INLINE_BYTES, data_converter
from tests.conftest import HANGS

LARGE = 700_000
_XOR = bytes(byte ^ 42 for byte in range(256))


class Scrambled(PayloadCodec):
    """Stands for encryption, which plain clients have too."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        changed = (payload.SerializeToString().translate(_XOR) for payload in payloads)
        return [Payload(metadata={"encoding": b"binary/scrambled"}, data=data) for data in changed]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [Payload.FromString(payload.data.translate(_XOR)) for payload in payloads]


@tool
async def pages(count: int) -> str:
    """Give a page of that many characters."""
    return "p" * count


@activity.defn(name="measure")
async def measure(arguments: dict[str, Any], context: dict[str, Any]) -> str:
    """Measure a text, on a worker that has only Temporal's SDK."""
    return f"{len(arguments['text'])} characters, context {len(context['context']['notes'])}"


remote = RemoteTool(
    name="measure",
    description="Measure a text.",
    task_queue="replaced",
    input_schema={"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
)


@pytest.mark.parametrize("codec", [None, Scrambled()], ids=["plain", "codec"])
async def test_plain_clients_read_everything(settings: Settings, codec: PayloadCodec | None) -> None:
    """Results, failures, statuses, pages, replies and remote arguments of any size, also behind a codec."""
    converter = replace(DataConverter.default, payload_codec=codec)
    agent = Agent(
        name="a",
        model="scripted:x",
        tools=[pages, replace(remote, task_queue=f"{settings.task_queue}-plain")],
        result_preview_bytes=LARGE,
        on_failure="fail",
    )
    script = ScriptedModel(
        lambda request: (
            fails("bad_request", "no")
            if request.messages[0].text.startswith("fail")
            else [
                calls("measure", text="t" * LARGE),
                calls("pages", count=LARGE),
                says("y" * LARGE),
            ][min(request.step, 3) - 1]
        )
    )
    plugin = PerdurePlugin([agent], models={"scripted": script}, settings=settings)
    ours = await Client.connect(settings.address, data_converter=converter, plugins=[plugin])
    plain = await Client.connect(settings.address, data_converter=converter)
    request = {"agent": "a", "prompt": "go", "context": {"notes": "n" * LARGE}}
    async with (
        asyncio.timeout(HANGS),
        Worker(ours, task_queue=settings.task_queue),
        Worker(plain, task_queue=f"{settings.task_queue}-plain", activities=[measure]),
    ):
        run: Any = await plain.start_workflow(
            "AgentWorkflow", request, id=f"plain-{settings.task_queue}", task_queue=settings.task_queue
        )
        result = await run.result()
        messages: list[Any] = []
        while len(messages) < 6:
            messages += (await run.query("transcript", {"start": len(messages)}))["messages"]
        status = await run.query("status")
        failing: Any = await plain.start_workflow(
            "AgentWorkflow",
            {"agent": "a", "prompt": "fail" + "x" * LARGE},
            id=f"failing-{settings.task_queue}",
            task_queue=settings.task_queue,
        )
        with pytest.raises(WorkflowFailureError) as raised:
            await failing.result()
    assert len(result["output"]) == LARGE
    assert "700000 characters, context 700000" in str(messages[2])
    assert all(len(str(messages[index])) > LARGE for index in (1, 4, 5))
    assert status["status"] == "completed"
    assert isinstance(raised.value.cause, ApplicationError)
    assert raised.value.cause.details[0]["stop_reason"] == "error"


async def test_mark_is_gone_where_it_has_served(settings: Settings) -> None:
    """A small value is not marked; a large one is inline, and beyond Temporal's limit it goes to the store."""
    from perdure.activities.content.blobs import open_store

    converter = data_converter(open_store(settings.blob_store), settings.blob_threshold_bytes)
    for size, inline in ((100, True), (100_000, True), (MOST_INLINE_BYTES + 1, False)):
        (payload,) = await converter.encode([RemoteArguments(text="x" * size)])
        assert (len(payload.data) > size) is inline
        assert (await converter.decode([payload]))[0] == {"text": "x" * size}
    (small,) = await converter.encode([RemoteArguments(text="x" * 100)])
    assert list(small.metadata) == ["encoding"]
