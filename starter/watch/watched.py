"""Protocol by which watching knows a run."""

from typing import Protocol

from temporalio.client import Client, WorkflowExecutionDescription

from perdure.messages import Message
from perdure.wire.results import RunResult, RunStatus
from perdure.wire.spec import ResolvedAgent


class WatchedRun(Protocol):
    """Calls on a run that its watchers make; `client.run.Run` has them."""

    @property
    def client(self) -> Client:
        """Temporal's client. Watchers over the same one share their polls."""
        ...

    @property
    def id(self) -> str:
        """Workflow id."""
        ...

    def get(self, run_id: str) -> "WatchedRun":
        """Return another run on the same connection."""
        ...

    async def describe(self) -> WorkflowExecutionDescription:
        """Return what the server knows; no worker is asked."""
        ...

    async def status(self) -> RunStatus:
        """Return the status, from a worker."""
        ...

    async def transcript(self, *, start: int = 0) -> list[Message]:
        """Return the messages from number `start` on, from a worker."""
        ...

    async def spec(self) -> ResolvedAgent:
        """Return the spec that the run was started with, from a worker."""
        ...

    async def result(self) -> RunResult:
        """Wait for the end."""
        ...
