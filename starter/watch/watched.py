"""The protocol by which `watch/` knows a run. `client/` imports `watch/`, never the other way round."""

from typing import Protocol

from temporalio.client import Client, WorkflowExecutionDescription

from perdure.messages import Message
from perdure.wire.results import RunResult, RunStatus
from perdure.wire.spec import ResolvedAgent


class WatchedRun(Protocol):
    """The calls on a run that watching needs; `client.run.Run` has them."""

    @property
    def client(self) -> Client:
        """Temporal's client: watchers over the same one share their polls."""
        ...

    @property
    def id(self) -> str:
        """Workflow id."""
        ...

    def get(self, run_id: str) -> "WatchedRun":
        """Return another run on the same connection."""
        ...

    async def describe(self) -> WorkflowExecutionDescription:
        """Describe the run; no worker is asked."""
        ...

    async def status(self) -> RunStatus:
        """Ask a worker for the run's status."""
        ...

    async def transcript(self, *, start: int = 0) -> list[Message]:
        """Ask a worker for the messages from number `start` on."""
        ...

    async def spec(self) -> ResolvedAgent:
        """Ask a worker for the spec that the run keeps."""
        ...

    async def result(self) -> RunResult:
        """Wait for the end of the run."""
        ...
