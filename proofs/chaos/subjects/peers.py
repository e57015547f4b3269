"""Peers as the conductor sees them: each plays a task by one workflow, and parks nothing."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from temporalio.client import Client, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError

from ..catalogue import Task
from ..environments import peer_python
from ..script import closing
from . import QUEUE, TaskOutcome, Where, base_environment

_WORKFLOW = "ChaosTask"


class Peer:
    """Framework with an integration for Temporal; its worker runs in its own environment."""

    name: ClassVar[str]

    def python(self) -> Path:
        """See `Subject`."""
        return peer_python(self.name)

    def command(self) -> Sequence[str]:
        """See `Subject`."""
        return ["-m", f"proofs.chaos.subjects.{self.name}"]

    def environment(self, where: Where, worker: str) -> Mapping[str, str]:
        """See `Subject`."""
        return base_environment(where, worker)

    async def connect(self, address: str, where: Where) -> Client:
        """See `Subject`."""
        return await Client.connect(address)

    async def play(self, client: Client, task: Task) -> TaskOutcome:
        """Play the conversation by one workflow."""
        request = {
            "task": task.id,
            "classes": list(task.classes),
            "questions": [task.message(turn) for turn in range(len(task.turns))],
        }
        try:
            replies = await _await_result(client, task.id, request)
        except WorkflowFailureError as error:
            return TaskOutcome(task=task.id, error=_root_cause(error))
        right = [closing(task.id, turn) for turn in range(len(task.turns))]
        return TaskOutcome(task=task.id, error="" if replies == right else f"wrong replies: {replies!r}")

    async def resume_parked(self, client: Client) -> int:
        """Return 0: no run of a peer waits for a person."""
        return 0


class Strands(Peer):
    """Strands Agents with Temporal's plugin."""

    name = "strands"


class PydanticAI(Peer):
    """Pydantic AI with its `TemporalDurability`."""

    name = "pydantic_ai"


async def _await_result(client: Client, workflow_id: str, request: Mapping[str, object]) -> list[str]:
    """Return the workflow's result; ask again while the server is not reached."""
    while True:
        try:
            handle = await client.start_workflow(
                _WORKFLOW,
                request,
                id=workflow_id,
                task_queue=QUEUE,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY,
                result_type=list[str],
            )
            result: list[str] = await handle.result()
            return result
        except RPCError:
            await asyncio.sleep(0.3)


def _root_cause(error: BaseException) -> str:
    deepest: BaseException = error
    while (cause := getattr(deepest, "cause", None) or deepest.__cause__) is not None:
        deepest = cause
    return f"{type(deepest).__name__}: {deepest}"
