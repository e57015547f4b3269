"""Child runs of a run. Its status lists those that go on; its transcript says which others there were."""

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from datetime import UTC, datetime
from typing import Protocol, TypeVar

from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from perdure.errors import PerdureError, RunFailed, RunNotFound
from perdure.messages import Message, ToolCall
from perdure.wire.ids import call_id_of, child_key, child_run_id
from perdure.wire.results import TEAM_KINDS, NodeState, NodeStatus, RunResult, RunStatus
from perdure.wire.spec import AgentSpec, NodeKind, ResolvedAgent

from .watched import WatchedRun

_T = TypeVar("_T")


class Share(Protocol):
    """A function that makes a call once for all who use the same key."""

    async def __call__(self, key: Hashable, call: Callable[[], Awaitable[_T]], /) -> _T:
        """Return the outcome of the call."""
        ...


async def _call_directly(_: Hashable, call: Callable[[], Awaitable[_T]], /) -> _T:
    return await call()


class ChildRuns:
    """Runs that a run has started, ended ones included. The status of a swarm or graph lists them all."""

    def __init__(self, run: WatchedRun) -> None:
        self._run = run
        self._agent_tools: dict[str, tuple[str, NodeKind]] | None = None
        """Agent and kind behind each tool that is an agent; None until a call needs them."""
        self._called: dict[str, NodeStatus] = {}
        """Calls of agents whose run is not known to have begun, by call id."""
        self._answered: set[str] = set()
        """Calls with a result."""
        self._started: dict[str, NodeStatus] = {}
        """Runs known to have begun, by key."""

    async def nodes(
        self,
        status: RunStatus,
        messages: Sequence[Message],
        description: WorkflowExecutionDescription,
        share: Share = _call_directly,
    ) -> list[NodeStatus]:
        """Return all runs started so far. `messages` continue those of the call before.

        Raises:
            PerdureError: they cannot be had now; call again with the same messages.
            TimeoutError: so says `share`; as above.

        """
        if status.spec_kind in TEAM_KINDS:
            return status.nodes
        await self._read_calls(messages, share)
        closed = description.status != WorkflowExecutionStatus.RUNNING
        running = set[str]() if closed else {node.key for node in status.nodes}
        for node in status.nodes:
            # The status may be newer than the messages, and list a run whose call is not read yet.
            self._started.setdefault(node.key, self._called.pop(call_id_of(node.key), node))
        # The status forgets a run once it has ended: the server knows how it ended, or that it never began.
        settled = [call_id for call_id in self._called if closed or call_id in self._answered]
        forgotten = [
            node for node in self._started.values() if node.state == "running" and node.key not in running
        ]
        ended = [*(self._called[call_id] for call_id in settled), *forgotten]
        began = original_start(description)
        ends = await asyncio.gather(*(self._end(node, began, share) for node in ended))
        for call_id in settled:  # only now: had the server failed to answer, they would be asked about again
            del self._called[call_id]
        for node, end in zip(ended, ends, strict=True):
            if end is not None:
                self._started[node.key] = node.model_copy(update=end)
            elif node.key in self._started:  # announced by its parent, but never begun
                self._started[node.key] = node.model_copy(update={"state": "cancelled"})
        return list(self._started.values())

    async def _read_calls(self, messages: Sequence[Message], share: Share) -> None:
        calls = [call for message in messages for call in message.tool_calls]
        if calls and self._agent_tools is None:
            self._agent_tools = _agent_tools(await share("spec", self._run.spec))
        self._answered |= {result.call_id for message in messages for result in message.tool_results}
        for call in calls:
            target = (self._agent_tools or {}).get(call.name)
            if target is not None:
                self._called[call.id] = self._called_run(call, *target)

    def _called_run(self, call: ToolCall, agent: str, kind: NodeKind) -> NodeStatus:
        key = child_key(agent, call.id)
        return NodeStatus(key=key, node=agent, kind=kind, run_id=child_run_id(self._run.id, key))

    async def _end(self, node: NodeStatus, began: datetime, share: Share) -> dict[str, object] | None:
        assert node.run_id is not None, "only functions of a graph have no run"
        child = self._run.get(node.run_id)
        return await share(("end", child.id), lambda: _end_fields(child, began))


async def _end_fields(child: WatchedRun, began: datetime) -> dict[str, object] | None:
    """Return the fields that the end of the run sets, as the server keeps them; None if it never began."""
    try:
        description = await child.describe()
    except RunNotFound:
        return None
    if description.start_time < began:
        return None  # a run of the same id, started by an earlier execution of the parent
    times: dict[str, object] = {"started_at": description.start_time, "ended_at": description.close_time}
    if description.status == WorkflowExecutionStatus.RUNNING:  # its parent did not wait for its end
        return {**times, "state": "cancelled", "stop_reason": "cancelled"}
    return {**times, **await _result_fields(child)}


async def _result_fields(child: WatchedRun) -> dict[str, object]:
    try:
        result = await child.result()
    except RunFailed as error:
        if error.result is None:
            return {"state": "failed", "stop_reason": "error"}
        result = error.result
    except PerdureError:
        return {"state": "done"}
    return {
        "state": _state(result),
        **result.model_dump(include={"stop_reason", "steps", "tool_calls", "cost_microusd"}),
        "usage": result.usage,
        "error": result.error,
    }


def _state(result: RunResult) -> NodeState:
    if result.stop_reason == "cancelled":
        return "cancelled"
    return "failed" if result.error is not None else "done"


def _agent_tools(resolved: ResolvedAgent) -> dict[str, tuple[str, NodeKind]]:
    if not isinstance(resolved.spec, AgentSpec):
        return {}
    kinds: dict[str, NodeKind] = {member.name: member.kind for member in resolved.members}
    return {
        tool.name: (tool.agent, kinds.get(tool.agent, "agent"))
        for tool in resolved.spec.tools
        if tool.agent is not None
    }


def original_start(description: WorkflowExecutionDescription) -> datetime:
    """Return when the run began, before any continue-as-new."""
    began = description.raw_description.workflow_extended_info.original_start_time
    return began.ToDatetime(tzinfo=UTC) if began.ToSeconds() else description.start_time
