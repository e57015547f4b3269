"""Two peers as the conductor sees them: each plays a task by one workflow, and parks nothing."""

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from temporalio.client import Client, WorkflowFailureError
from temporalio.common import WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.service import RPCError

from ..catalogue import Task
from ..environments import of_a_peer
from ..script import closing
from . import QUEUE, Played, Where, base_environment

_WORKFLOW = "ChaosTask"


class Peer:
    """A framework with an integration for Temporal; its worker runs in its own environment."""

    name: ClassVar[str]

    def python(self) -> Path:
        """See `Subject`."""
        return of_a_peer(self.name)

    def command(self) -> Sequence[str]:
        """See `Subject`."""
        return ["-m", f"proofs.chaos.subjects.{self.name}"]

    def environment(self, where: Where, worker: str) -> Mapping[str, str]:
        """See `Subject`."""
        return base_environment(where, worker)

    async def connect(self, address: str, where: Where) -> Client:
        """See `Subject`."""
        return await Client.connect(address)

    async def play(self, client: Client, task: Task) -> Played:
        """One workflow for the whole conversation."""
        said = {
            "task": task.id,
            "classes": list(task.classes),
            "questions": [task.message(turn) for turn in range(len(task.turns))],
        }
        try:
            replies = await _ended(client, task.id, said)
        except WorkflowFailureError as error:
            return Played(task=task.id, error=_deepest(error))
        right = [closing(task.id, turn) for turn in range(len(task.turns))]
        return Played(task=task.id, error="" if replies == right else f"it said {replies!r}")

    async def mend(self, client: Client) -> int:
        """Nothing waits for a person."""
        return 0


class Strands(Peer):
    """Strands Agents with Temporal's plugin."""

    name = "strands"


class PydanticAI(Peer):
    """Pydantic AI with its `TemporalDurability`."""

    name = "pydantic_ai"


async def _ended(client: Client, workflow_id: str, said: Mapping[str, object]) -> list[str]:
    """The workflow's result; asked again when the server was not reached."""
    while True:
        try:
            handle = await client.start_workflow(
                _WORKFLOW,
                said,
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


def _deepest(error: BaseException) -> str:
    seen: BaseException = error
    while (cause := getattr(seen, "cause", None) or seen.__cause__) is not None:
        seen = cause
    return f"{type(seen).__name__}: {seen}"
