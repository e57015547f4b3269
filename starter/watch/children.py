"""Runs that an agent's run has started: its status knows the living, its transcript who else there was."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from perdure.errors import PerdureError, RunFailed, RunNotFound
from perdure.messages import Message, ToolCall
from perdure.wire.ids import call_id_of, child_key, child_run_id
from perdure.wire.results import NodeState, NodeStatus, RunResult, RunStatus
from perdure.wire.spec import AgentSpec, NodeKind, ResolvedAgent

from .poll import Poll
from .watched import WatchedRun

_Answer = TypeVar("_Answer")


class ChildRuns:
    """What a run has started, what has ended too. Of a swarm or graph that is what its status says."""

    def __init__(self, run: WatchedRun) -> None:
        self._run = run
        self._tools: dict[str, tuple[str, NodeKind]] | None = None
        """Tools that are agents: whom they call, and what that is."""
        self._open: dict[str, NodeStatus] = {}
        """By call id: what may have been started."""
        self._answered: set[str] = set()
        self._known: dict[str, NodeStatus] = {}
        """By key: what has been started."""

    async def nodes(
        self,
        status: RunStatus,
        messages: Sequence[Message],
        described: WorkflowExecutionDescription,
        poll: Poll | None = None,
    ) -> list[NodeStatus]:
        """All of them. `messages` follow those that it was given before. Who has a poll, of which
        `described` is a part, shares with others what must be asked.

        Raises:
            PerdureError: they cannot be had now; ask again, with the same messages.

        """
        if status.kind in ("swarm", "graph"):
            return status.nodes
        await self._read(messages, poll)
        closed = described.status != WorkflowExecutionStatus.RUNNING
        living = set[str]() if closed else {node.key for node in status.nodes}
        for node in status.nodes:
            self._known.setdefault(node.key, self._open.pop(call_id_of(node.key), node))
        over = [call for call in self._open if closed or call in self._answered]
        maybe = [self._open.pop(call) for call in over]
        gone = [one for one in self._known.values() if one.state == "running" and one.key not in living]
        ends = (self._ended(node, original_start(described), poll) for node in (*maybe, *gone))
        looked = await asyncio.gather(*ends)
        for node, ended in zip((*maybe, *gone), looked, strict=True):
            if ended is not None:
                self._known[node.key] = node.model_copy(update=ended)
            elif node.key in self._known:  # it was announced, and never came to be
                self._known[node.key] = node.model_copy(update={"state": "cancelled"})
        return list(self._known.values())

    async def _read(self, messages: Sequence[Message], poll: Poll | None) -> None:
        calls = [call for message in messages for call in message.tool_calls]
        if calls and self._tools is None:
            self._tools = _agents_among_tools(await _once(poll, "spec", self._run.spec))
        self._answered |= {result.call_id for message in messages for result in message.tool_results}
        for call in calls:
            meant = (self._tools or {}).get(call.name)
            if meant is not None:
                self._open[call.id] = self._draft(call, *meant)

    def _draft(self, call: ToolCall, agent: str, kind: NodeKind) -> NodeStatus:
        key = child_key(agent, call.id)
        return NodeStatus(key=key, node=agent, kind=kind, run_id=child_run_id(self._run.id, key))

    async def _ended(self, node: NodeStatus, began: datetime, poll: Poll | None) -> dict[str, object] | None:
        """How it ended, as the server keeps it; None when it never began."""
        assert node.run_id is not None, "only functions have none"
        child = self._run.get(node.run_id)
        return await _once(poll, ("ended", child.id), lambda: _end(child, began))


async def _once(
    poll: Poll | None, what: Hashable, ask: Callable[[], Coroutine[Any, Any, _Answer]]
) -> _Answer:
    return await (poll.once(what, ask) if poll else ask())


async def _end(child: WatchedRun, began: datetime) -> dict[str, object] | None:
    try:
        described = await child.describe()
    except RunNotFound:
        return None
    if described.start_time < began:
        return None  # of an earlier run of the same id
    times: dict[str, object] = {"started_at": described.start_time, "ended_at": described.close_time}
    if described.status == WorkflowExecutionStatus.RUNNING:  # given up
        return {**times, "state": "cancelled", "stop_reason": "cancelled"}
    return {**times, **await _outcome(child)}


async def _outcome(child: WatchedRun) -> dict[str, object]:
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


def _agents_among_tools(resolved: ResolvedAgent) -> dict[str, tuple[str, NodeKind]]:
    if not isinstance(resolved.spec, AgentSpec):
        return {}
    kinds: dict[str, NodeKind] = {member.name: member.kind for member in resolved.members}
    return {
        tool.name: (tool.agent, kinds.get(tool.agent, "agent"))
        for tool in resolved.spec.tools
        if tool.agent is not None
    }


def original_start(described: WorkflowExecutionDescription) -> datetime:
    """When a run began, however often it has continued as new."""
    began = described.raw_description.workflow_extended_info.original_start_time
    return began.ToDatetime(tzinfo=UTC) if began.ToSeconds() else described.start_time
