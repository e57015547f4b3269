"""Replay gate: checks from a run's history that this code can continue a run which other code began.

1. The history is cut after the commands of the last completed workflow task. Code may do anything beyond.
2. This code replays it. Temporal's replayer compares the kinds of commands and their order.
3. The gate also compares the target of each command: the tool, node or agent, and the arguments. So a
   changed condition of a graph is found even if it only leads from one function to another.
"""

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, cast

from temporalio import workflow
from temporalio.api.enums.v1 import EventType
from temporalio.client import WorkflowHistory
from temporalio.converter import DataConverter
from temporalio.worker import (
    Interceptor,
    Replayer,
    StartActivityInput,
    StartChildWorkflowInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from perdure.mcp import McpServer
from perdure.tools import Tool
from perdure.wire.names import CALL_MODEL, CALL_NODE, CALL_TOOL
from perdure.wire.spec import AgentSpec

from ..plugin import PerdurePlugin
from .histories import inline_blobs

Verdict = Literal["ok", "nondeterministic", "failed", "unread"]

_CHILD: Final = "child"
_IDENTIFYING_FIELDS: Final[dict[str, tuple[str, ...]]] = {
    CALL_MODEL: ("agent", "step", "model", "view"),
    CALL_TOOL: ("agent", "tool", "call_id", "arguments"),
    CALL_NODE: ("graph", "node", "key"),
    _CHILD: ("agent",),
}
"""Fields of an input that name its target. A later version may write the others differently."""
_COMMAND_EVENTS: Final = frozenset(
    {
        EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
        EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED,
        EventType.EVENT_TYPE_TIMER_STARTED,
        EventType.EVENT_TYPE_TIMER_CANCELED,
        EventType.EVENT_TYPE_MARKER_RECORDED,
        EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
        EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
        EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED,
        EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW,
    }
)
# The SDK's core reports a failure as its own structures, printed.
_EVENT_ID: Final = re.compile(r"\b(?:event_)?id: (\d+)")
_MESSAGE: Final = re.compile(r'message: "((?:[^"\\]|\\.)*)"')
_DEADLOCK_CODE: Final = "TMPRL1101"
_MAX_REPLAYS: Final = 3

HINTS: Final[dict[Verdict, str]] = {
    "nondeterministic": (
        "Do not give these runs to this code. Leave them with the old build (perdure worker --deployment NAME"
        " --build BUILD), or guard the change: workflow.patched in workflows, another name for a graph whose "
        "conditions have changed."
    ),
    "failed": (
        "This code cannot continue these runs: they would be stuck. Restore what is missing, or leave "
        "them with the old build (perdure worker --deployment NAME --build BUILD)."
    ),
    "unread": (
        "Some histories could not be read. Check that PERDURE_BLOB_STORE is the blob store of these runs."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """Result of checking a history."""

    id: str
    run_id: str = ""
    agent: str = ""
    events: int = 0
    verdict: Verdict
    event: int | None = None
    """Id of the event at which the code departs from the history."""
    text: str = ""
    hint: str = ""
    missing: tuple[str, ...] = ()
    """Names that the run may call and this code lacks: tools as `agent: tool`, and child agents."""

    def line(self) -> str:
        """Return the result as text for people."""
        event = f" at event {self.event}" if self.event is not None else ""
        size = f" ({self.agent or 'no agent'}, {self.events} events)" if self.events else ""
        details = f"\n  {self.text}" if self.text else ""
        details += f"\n  may call, but not defined here: {', '.join(self.missing)}" if self.missing else ""
        return f"{self.verdict:<16}  {self.id}{size}{event}{details}"


# -- commands of a run


@dataclass(frozen=True, kw_only=True)
class _Command:
    """A request for an activity or a child run."""

    kind: str
    """An activity's type, or `_CHILD`."""
    name: str
    """An activity's type, or a child's workflow id."""
    args: Sequence[Any]
    event: int | None = None


@dataclass
class _Commands:
    """Commands of a run: activities by their number, counted from 1, and child runs by workflow id."""

    activities: dict[int, _Command] = field(default_factory=dict[int, _Command])
    children: dict[str, _Command] = field(default_factory=dict[str, _Command])


class _CommandRecorder(Interceptor):
    """Interceptor that records the commands of replayed runs, by Temporal's run id."""

    def __init__(self) -> None:
        self.by_run: dict[str, _Commands] = {}

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor]:
        by_run = self.by_run

        class Outbound(WorkflowOutboundInterceptor):
            def start_activity(self, input: StartActivityInput) -> "workflow.ActivityHandle[Any]":  # noqa: A002
                commands = by_run.setdefault(workflow.info().run_id, _Commands())
                # The SDK numbers a run's activities in the order of their start, as history does.
                number = len(commands.activities) + 1
                name = input.activity
                commands.activities[number] = _Command(kind=name, name=name, args=input.args)
                return super().start_activity(input)

            async def start_child_workflow(
                self,
                input: StartChildWorkflowInput,  # noqa: A002
            ) -> "workflow.ChildWorkflowHandle[Any, Any]":
                commands = by_run.setdefault(workflow.info().run_id, _Commands())
                commands.children[input.id] = _Command(kind=_CHILD, name=input.id, args=input.args)
                return await super().start_child_workflow(input)

        class Inbound(WorkflowInboundInterceptor):
            def init(self, outbound: WorkflowOutboundInterceptor) -> None:
                super().init(Outbound(outbound))

        return Inbound


async def _recorded_commands(history: WorkflowHistory, converter: DataConverter) -> _Commands:
    """Return the commands that the history holds."""
    commands = _Commands()
    for event in history.events:
        if event.HasField("activity_task_scheduled_event_attributes"):
            activity = event.activity_task_scheduled_event_attributes
            name = activity.activity_type.name
            # Inputs of other activities are not compared, and may be of types that we cannot decode.
            args = await converter.decode(activity.input.payloads) if name in _IDENTIFYING_FIELDS else []
            command = _Command(kind=name, name=name, args=args, event=event.event_id)
            commands.activities[int(activity.activity_id)] = command
        elif event.HasField("start_child_workflow_execution_initiated_event_attributes"):
            child = event.start_child_workflow_execution_initiated_event_attributes
            args = await converter.decode(child.input.payloads)
            command = _Command(kind=_CHILD, name=child.workflow_id, args=args, event=event.event_id)
            commands.children[child.workflow_id] = command
    return commands


def _first_difference(
    recorded: _Commands, replayed: _Commands, converter: DataConverter
) -> tuple[int | None, str] | None:
    """Return the first command of this code that the run did not give: its event, and both in words."""
    last = max(recorded.activities, default=0)
    for number, command in replayed.activities.items():
        before = recorded.activities.get(number)
        if before is None and number < last:
            continue  # cancelled in the workflow task that asked for it: history never saw it
        if before is None or _identity(before, converter) != _identity(command, converter):
            return _describe_difference(before, command, converter)
    for name, command in replayed.children.items():
        before = recorded.children.get(name)
        if before is None or _identity(before, converter) != _identity(command, converter):
            return _describe_difference(before, command, converter)
    return None


def _describe_difference(
    recorded: _Command | None, replayed: _Command, converter: DataConverter
) -> tuple[int | None, str]:
    new = _describe(replayed, converter)
    if recorded is None:
        return None, f"this code asks for {new}; the run never did"
    return recorded.event, f"the run asked for {_describe(recorded, converter)}; this code asks for {new}"


def _describe_missing(recorded: _Commands, event: int | None, converter: DataConverter) -> str:
    """Describe the command at that event, which this code did not give."""
    commands = (*recorded.activities.values(), *recorded.children.values())
    command = next((each for each in commands if event is not None and each.event == event), None)
    if command is None:
        return "this code gives other commands than the run did"
    return f"the run asked for {_describe(command, converter)}; this code does not"


def _identity(command: _Command, converter: DataConverter) -> dict[str, Any]:
    """Return the kind of a command and the fields that name its target."""
    values = _first_argument(command.args, converter)
    names = _IDENTIFYING_FIELDS.get(command.kind, ())
    return {"type": command.kind} | {name: values.get(name) for name in names}


def _describe(command: _Command, converter: DataConverter) -> str:
    identity = _identity(command, converter).items()
    fields = {name: value for name, value in identity if name not in ("type", "view")}
    text = ", ".join(f"{name}={json.dumps(value)[:80]}" for name, value in fields.items())
    return f"{'the run ' + command.name if command.kind == _CHILD else command.name}({text})"


def _first_argument(args: Sequence[Any], converter: DataConverter) -> Mapping[str, Any]:
    """Return the first argument as JSON: recorded arguments are JSON, those of this code are values."""
    if not args:
        return {}
    [payload] = converter.payload_converter.to_payloads([args[0]])
    return _as_dict(json.loads(payload.data))


def _as_dict(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def up_to_last_decision(history: WorkflowHistory) -> WorkflowHistory | None:
    """Return the history up to the commands of its last completed workflow task; None if none completed.

    Later events await a decision that no code has made yet, so any code may decide freely on them.
    """
    events = history.events
    completed = [
        index
        for index, event in enumerate(events)
        if event.HasField("workflow_task_completed_event_attributes")
    ]
    if not completed:
        return None
    end = completed[-1] + 1
    while end < len(events) and events[end].event_type in _COMMAND_EVENTS:
        end += 1
    return WorkflowHistory(history.workflow_id, events[:end])


# -- checking


class Gate:
    """Checks histories against the agents of a plugin, in sequence."""

    def __init__(self, plugin: PerdurePlugin, namespace: str) -> None:
        self._recorder = _CommandRecorder()
        self._tools = {
            # An MCP server stands for its tools: this code cannot know which it offers.
            name: {tool.name for tool in agent.tools if isinstance(tool, Tool | McpServer)}
            for name, agent in plugin.agents.items()
        }
        self._replayer = Replayer(
            workflows=[], namespace=namespace, plugins=[plugin], interceptors=[self._recorder]
        )
        converter = self._replayer.config(active_config=True).get("data_converter")
        assert converter is not None, "the plugin gives one"
        self.converter: DataConverter = converter

    async def check(self, history: WorkflowHistory) -> Check:
        """Replay the history, and compare the commands of this code with those of the run.

        Changes the history: payloads in the blob store are put in their places.
        """
        about: dict[str, Any] = {"id": history.workflow_id, "run_id": history.run_id}
        about["events"] = len(history.events)
        try:
            await inline_blobs(history, self.converter)
        except Exception as error:
            return failed_check(about, "unread", f"{type(error).__name__}: {error}")
        about["agent"] = await self._agent_name(history)
        about["missing"] = await self._missing_names(history, about["agent"])
        decided = up_to_last_decision(history)
        if decided is None:
            return Check(**about, verdict="ok")
        recorded = await _recorded_commands(decided, self.converter)
        failure = await self._replay(decided)
        replayed = next(iter(self._recorder.by_run.values()), _Commands())
        difference = _first_difference(recorded, replayed, self.converter)
        if failure is None and difference is None:
            return Check(**about, verdict="ok")
        event, text = difference or (None, "")
        if failure is None:
            return failed_check(about, "nondeterministic", text, event)
        verdict, cause, failed_at = _explain(failure)
        if verdict == "nondeterministic":
            cause = f"{text or _describe_missing(recorded, failed_at, self.converter)}; {cause}"
        return failed_check(about, verdict, cause, failed_at or event)

    async def _replay(self, history: WorkflowHistory) -> Exception | None:
        """Replay the history; return the failure, or None."""
        failure: Exception | None = None
        # On a busy machine a slow workflow task is reported as a deadlock. Only a repeated one is real.
        for _ in range(_MAX_REPLAYS):
            self._recorder.by_run.clear()
            result = await self._replayer.replay_workflow(history, raise_on_replay_failure=False)
            failure = result.replay_failure
            if failure is None or _DEADLOCK_CODE not in str(failure):
                break
        return failure

    async def _agent_name(self, history: WorkflowHistory) -> str:
        payloads = history.events[0].workflow_execution_started_event_attributes.input.payloads
        try:
            [request, *_] = await self.converter.decode(payloads[:1])
        except Exception:
            return ""
        return str(_as_dict(request).get("agent", ""))

    async def _missing_names(self, history: WorkflowHistory, root: str) -> tuple[str, ...]:
        """Return the tools and child agents that the run's pinned specs name and this code lacks."""
        missing: set[str] = set()
        for spec in await self._pinned_specs(history):
            known = self._tools.get(spec.name)
            if known is None:
                # A run whose own agent is missing is reported apart, by `Check.agent`.
                missing |= {spec.name} - {root}
                continue
            named = {tool.name for tool in spec.tools if tool.kind == "function"} | set(spec.mcp_servers)
            missing |= {f"{spec.name}: {name}" for name in named - known}
        return tuple(sorted(missing))

    async def _pinned_specs(self, history: WorkflowHistory) -> Sequence[AgentSpec]:
        """Return the specs of agents that the run began with, from its input or its first activity."""
        payloads = list(history.events[0].workflow_execution_started_event_attributes.input.payloads)
        for event in history.events[1:]:
            if event.HasField("activity_task_completed_event_attributes"):
                payloads += event.activity_task_completed_event_attributes.result.payloads
                break  # a run that was given no spec resolves its agent before anything else
        try:
            values = await self.converter.decode(payloads)
        except Exception:
            return []
        return [spec for value in values for spec in _specs_in(value)]


def _specs_in(value: Any) -> Iterator[AgentSpec]:
    """Yield the specs of agents in a run's input or a resolved agent; a user's data is not searched."""
    request = _as_dict(value)
    state = _as_dict(request.get("state"))
    for holder in (request, state):
        members: Any = holder.get("members") or ()
        for spec in (holder.get("spec"), *members):
            with contextlib.suppress(ValueError):  # none, or a spec of another kind
                yield AgentSpec.model_validate(spec)


def failed_check(about: dict[str, Any], verdict: Verdict, text: str, event: int | None = None) -> Check:
    """Return the result for a history that is not ok, with a hint what to do."""
    return Check(**about, verdict=verdict, event=event, text=text, hint=HINTS[verdict])


def _explain(failure: Exception) -> tuple[Verdict, str, int | None]:
    """Return the verdict, the cause in words, and the event at which the replay failed, if it is known."""
    line = " ".join(str(failure).split())
    message = _MESSAGE.search(line)
    text = (message[1].replace('\\"', '"').replace("\\'", "'") if message else line)[:500]
    if not isinstance(failure, workflow.NondeterminismError):
        return "failed", text, None
    event = _EVENT_ID.search(line)
    return "nondeterministic", text, int(event[1]) if event else None
