"""Gate: whether code can go on with a run that other code has begun, from the run's history.

Temporal compares the kinds of commands, in their order; here it is compared too whom they are for:
which tool, which node, which agent. A graph's condition that decides otherwise is found even where
it leads from one function to another.
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

from perdure.tools import Tool
from perdure.wire.names import CALL_MODEL, CALL_NODE, CALL_TOOL
from perdure.wire.spec import AgentSpec

from ..plugin import PerdurePlugin
from .histories import inline_blobs

Verdict = Literal["ok", "nondeterministic", "failed", "unread"]

_CHILD: Final = "child"
_IDENTITY: Final[dict[str, tuple[str, ...]]] = {
    CALL_MODEL: ("agent", "step", "model", "view"),
    CALL_TOOL: ("agent", "tool", "call_id", "arguments"),
    CALL_NODE: ("graph", "node", "key"),
    _CHILD: ("agent",),
}
"""What of an input says whom it is for. The rest may be written otherwise by a later version."""
_COMMANDS: Final = frozenset(
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
_EVENT: Final = re.compile(r"\b(?:event_)?id: (\d+)")
_MESSAGE: Final = re.compile(r'message: "((?:[^"\\]|\\.)*)"')
"""In what the SDK's core says of a failure: its own structures, printed."""
_DEADLOCK: Final = "TMPRL1101"
_TRIES: Final = 3

HINTS: Final[dict[Verdict, str]] = {
    "nondeterministic": (
        "Do not give these runs to this code. Leave them with the old build (perdure worker --deployment NAME"
        " --build BUILD), or guard the change: workflow.patched in workflows, another name for a graph whose "
        "conditions have changed."
    ),
    "failed": (
        "This code cannot go on with these runs: they would be stuck. Bring back what is missing, or leave "
        "them with the old build (perdure worker --deployment NAME --build BUILD)."
    ),
    "unread": "Some could not be read: is this the blob store of these runs (PERDURE_BLOB_STORE)?",
}


@dataclass(frozen=True, kw_only=True)
class Check:
    """What came of one history."""

    id: str
    run_id: str = ""
    agent: str = ""
    events: int = 0
    verdict: Verdict
    event: int | None = None
    """The event at which they part."""
    text: str = ""
    hint: str = ""
    missing: tuple[str, ...] = ()
    """What the run may call and this code does not have: each tool as `agent: tool`, agents below it."""

    def line(self) -> str:
        """For people."""
        where = f" at event {self.event}" if self.event is not None else ""
        size = f" ({self.agent or 'no agent'}, {self.events} events)" if self.events else ""
        told = f"\n  {self.text}" if self.text else ""
        told += f"\n  may call what is not here: {', '.join(self.missing)}" if self.missing else ""
        return f"{self.verdict:<16}  {self.id}{size}{where}{told}"


# -- what the replayed code asks for


@dataclass(frozen=True, kw_only=True)
class _Call:
    """An activity or a child run that was asked for."""

    kind: str
    name: str
    """An activity's type, a child's id."""
    args: Sequence[Any]
    event: int | None = None


@dataclass
class _Asked:
    """What a run asks for: activities by their number, counted from one, and child runs by id."""

    activities: dict[int, _Call] = field(default_factory=dict[int, _Call])
    children: dict[str, _Call] = field(default_factory=dict[str, _Call])


class _Listening(Interceptor):
    """Writes down what replayed runs ask for, by their run ids."""

    def __init__(self) -> None:
        self.heard: dict[str, _Asked] = {}

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor]:
        heard = self.heard

        class Outbound(WorkflowOutboundInterceptor):
            def start_activity(self, input: StartActivityInput) -> "workflow.ActivityHandle[Any]":  # noqa: A002
                asked = heard.setdefault(workflow.info().run_id, _Asked())
                number = len(asked.activities) + 1
                asked.activities[number] = _Call(kind=input.activity, name=input.activity, args=input.args)
                return super().start_activity(input)

            async def start_child_workflow(
                self,
                input: StartChildWorkflowInput,  # noqa: A002
            ) -> "workflow.ChildWorkflowHandle[Any, Any]":
                asked = heard.setdefault(workflow.info().run_id, _Asked())
                asked.children[input.id] = _Call(kind=_CHILD, name=input.id, args=input.args)
                return await super().start_child_workflow(input)

        class Inbound(WorkflowInboundInterceptor):
            def init(self, outbound: WorkflowOutboundInterceptor) -> None:
                super().init(Outbound(outbound))

        return Inbound


async def _recorded(history: WorkflowHistory, converter: DataConverter) -> _Asked:
    """What the run asked for when it ran."""
    asked = _Asked()
    for event in history.events:
        if event.HasField("activity_task_scheduled_event_attributes"):
            one = event.activity_task_scheduled_event_attributes
            args = await converter.decode(one.input.payloads) if one.activity_type.name in _IDENTITY else []
            name = one.activity_type.name
            call = _Call(kind=name, name=name, args=args, event=event.event_id)
            asked.activities[int(one.activity_id)] = call
        elif event.HasField("start_child_workflow_execution_initiated_event_attributes"):
            child = event.start_child_workflow_execution_initiated_event_attributes
            args = await converter.decode(child.input.payloads)
            call = _Call(kind=_CHILD, name=child.workflow_id, args=args, event=event.event_id)
            asked.children[child.workflow_id] = call
    return asked


def _difference(recorded: _Asked, asked: _Asked, converter: DataConverter) -> tuple[int | None, str] | None:
    """The first thing that this code asks for and the run did not: its event, and both in words."""
    last = max(recorded.activities, default=0)
    for number, call in asked.activities.items():
        before = recorded.activities.get(number)
        if before is None and number < last:
            continue  # given up in the very task that asked for it
        if before is None or _identity(before, converter) != _identity(call, converter):
            return _told(before, call, converter)
    for name, call in asked.children.items():
        before = recorded.children.get(name)
        if before is None or _identity(before, converter) != _identity(call, converter):
            return _told(before, call, converter)
    return None


def _told(before: _Call | None, call: _Call, converter: DataConverter) -> tuple[int | None, str]:
    here = _words(call, converter)
    if before is None:
        return None, f"this code asks for {here}, which the run never did"
    return before.event, f"the run asked for {_words(before, converter)}, this code asks for {here}"


def _missed(recorded: _Asked, event: int | None, converter: DataConverter) -> str:
    """What the run asked for at that event, and this code did not."""
    calls = (*recorded.activities.values(), *recorded.children.values())
    call = next((one for one in calls if event is not None and one.event == event), None)
    if call is None:
        return "this code does otherwise than the run did"
    return f"the run asked for {_words(call, converter)}, this code does not"


def _identity(call: _Call, converter: DataConverter) -> dict[str, Any]:
    given = _plain(call.args, converter)
    wanted = _IDENTITY.get(call.kind, ())
    return {"type": call.kind} | {name: given.get(name) for name in wanted}


def _words(call: _Call, converter: DataConverter) -> str:
    named = {
        name: value for name, value in _identity(call, converter).items() if name not in ("type", "view")
    }
    told = ", ".join(f"{name}={json.dumps(value)[:80]}" for name, value in named.items())
    return f"{'the run ' + call.name if call.kind == _CHILD else call.name}({told})"


def _plain(args: Sequence[Any], converter: DataConverter) -> Mapping[str, Any]:
    """The first argument as JSON has it: recorded ones are, the code's own are values."""
    if not args:
        return {}
    [payload] = converter.payload_converter.to_payloads([args[0]])
    return _members(json.loads(payload.data))


def _members(value: Any) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def up_to_last_decision(history: WorkflowHistory) -> WorkflowHistory | None:
    """The history up to the last decision and what it asked for; None: no decision has been made.

    Behind it is what no code has answered yet: there, any code may do what it likes.
    """
    events = history.events
    done = [at for at, one in enumerate(events) if one.HasField("workflow_task_completed_event_attributes")]
    if not done:
        return None
    end = done[-1] + 1
    while end < len(events) and events[end].event_type in _COMMANDS:
        end += 1
    return WorkflowHistory(history.workflow_id, events[:end])


# -- checking


class Gate:
    """Checks histories against the agents of a plugin, one at a time."""

    def __init__(self, plugin: PerdurePlugin, namespace: str) -> None:
        self._listening = _Listening()
        self._tools = {
            name: {tool.name for tool in one.tools if isinstance(tool, Tool)}
            for name, one in plugin.agents.items()
        }
        self._replayer = Replayer(
            workflows=[], namespace=namespace, plugins=[plugin], interceptors=[self._listening]
        )
        converter = self._replayer.config(active_config=True).get("data_converter")
        assert converter is not None, "the plugin gives one"
        self.converter: DataConverter = converter

    async def check(self, history: WorkflowHistory) -> Check:
        """Replay the history, and compare what the code asks for with what the run did.

        The history is made whole on the way.
        """
        about: dict[str, Any] = {"id": history.workflow_id, "run_id": history.run_id}
        about["events"] = len(history.events)
        try:
            await inline_blobs(history, self.converter)
        except Exception as error:
            return failed_check(about, "unread", f"{type(error).__name__}: {error}")
        about["agent"] = await self._agent(history)
        about["missing"] = await self._missing(history, about["agent"])
        begun = up_to_last_decision(history)
        if begun is None:
            return Check(**about, verdict="ok")
        recorded = await _recorded(begun, self.converter)
        failure = await self._replayed(begun)
        heard = next(iter(self._listening.heard.values()), _Asked())
        difference = _difference(recorded, heard, self.converter)
        if failure is None and difference is None:
            return Check(**about, verdict="ok")
        event, text = difference or (None, "")
        if failure is None:
            return failed_check(about, "nondeterministic", text, event)
        verdict, said, at = _why(failure)
        if verdict == "nondeterministic":
            said = f"{text or _missed(recorded, at, self.converter)}; {said}"
        return failed_check(about, verdict, said, at or event)

    async def _replayed(self, history: WorkflowHistory) -> Exception | None:
        """What goes wrong. A machine that is busy looks like a deadlock: that is tried again."""
        failure: Exception | None = None
        for _ in range(_TRIES):
            self._listening.heard.clear()
            result = await self._replayer.replay_workflow(history, raise_on_replay_failure=False)
            failure = result.replay_failure
            if failure is None or _DEADLOCK not in str(failure):
                break
        return failure

    async def _agent(self, history: WorkflowHistory) -> str:
        payloads = history.events[0].workflow_execution_started_event_attributes.input.payloads
        try:
            [request, *_] = await self.converter.decode(payloads[:1])
        except Exception:
            return ""
        return str(_members(request).get("agent", ""))

    async def _missing(self, history: WorkflowHistory, top: str) -> tuple[str, ...]:
        """Functions, and agents below, that the run's pinned specs name and this code does not have."""
        found: set[str] = set()
        for spec in await self._pinned(history):
            known = self._tools.get(spec.name)
            if known is None:
                found |= {spec.name} - {top}
                continue
            named = {tool.name for tool in spec.tools if tool.kind == "function"}
            found |= {f"{spec.name}: {name}" for name in named - known}
        return tuple(sorted(found))

    async def _pinned(self, history: WorkflowHistory) -> Sequence[AgentSpec]:
        """The specs of agents that the run began with: given to it, or fetched by it."""
        payloads = list(history.events[0].workflow_execution_started_event_attributes.input.payloads)
        for event in history.events[1:]:
            if event.HasField("activity_task_completed_event_attributes"):
                payloads += event.activity_task_completed_event_attributes.result.payloads
                break  # a run that was given no spec fetches it before anything else
        try:
            values = await self.converter.decode(payloads)
        except Exception:
            return []
        return [spec for value in values for spec in _specs_in(value)]


def _specs_in(value: Any) -> Iterator[AgentSpec]:
    """Specs of agents, where a run's first input or what it has fetched holds them: not in users' words."""
    whole = _members(value)
    state = _members(whole.get("state"))
    for holder in (whole, state):
        members: Any = holder.get("members") or ()
        for one in (holder.get("spec"), *members):
            with contextlib.suppress(ValueError):  # none, or of another kind
                yield AgentSpec.model_validate(one)


def failed_check(about: dict[str, Any], verdict: Verdict, text: str, event: int | None = None) -> Check:
    """What is wrong with that one, and what to do."""
    return Check(**about, verdict=verdict, event=event, text=text, hint=HINTS[verdict])


def _why(failure: Exception) -> tuple[Verdict, str, int | None]:
    whole = " ".join(str(failure).split())
    message = _MESSAGE.search(whole)
    text = (message[1].replace('\\"', '"').replace("\\'", "'") if message else whole)[:500]
    if not isinstance(failure, workflow.NondeterminismError):
        return "failed", text, None
    found = _EVENT.search(whole)
    return "nondeterministic", text, int(found[1]) if found else None
