"""Moments at which a run is ended: how it gets there, and how one sees that it is there."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Final, Literal, TypeVar

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import WorkflowExecutionDescription

from perdure.errors import InvalidRequest, NotReachable, PerdureError
from perdure.limits import Limits
from perdure.starter.client.run import Run
from perdure.wire.names import CALL_MODEL, CALL_TOOL, REDRIVE, RELAY, RESOLVE_AGENT, RESOLVE_APPROVAL
from perdure.wire.results import RunStatus

from .stage import CROWD, EVENTS_BEFORE_RENEWAL, Stage, until

Kind = Literal["run", "session", "swarm", "graph", "pattern"]
_T = TypeVar("_T")
How = Literal["stop", "cancel", "deadline"]
_MOST_TOKENS: Final = 10_000_000
"""Limit of each run: with one, each run below has a lease, which it gives back at its end."""
_WAITING_FOR_SLOT: Final = PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED


@dataclass
class Played:
    """A run on its way to a moment."""

    stage: Stage
    id: str
    kind: Kind
    agent: str
    timeout: timedelta | None
    run: Run = field(init=False)
    waiting: list["asyncio.Task[Any]"] = field(default_factory=list["asyncio.Task[Any]"])
    """Callers that the run keeps waiting. Its end must answer them."""

    def __post_init__(self) -> None:
        self.run = self.stage.client.get(self.id)

    async def begin(self) -> None:
        """Start the run, or the session with a first message."""
        limits = Limits(total_tokens=_MOST_TOKENS, timeout=self.timeout)
        client = self.stage.client
        if self.kind != "session":
            await client.start(self.agent, "go", id=self.id, user=self.id, limits=limits, stream=False)
            return
        opened = await client.session(
            self.id, agent=self.agent, user=self.id, session_limits=limits, stream=False
        )
        self.wait_for(insist(lambda: opened.say("go", id="first")))

    def wait_for(self, call: Awaitable[Any]) -> None:
        """Make a call that the run does not answer yet."""
        self.waiting.append(asyncio.ensure_future(call))

    async def until_described(self, true: Callable[[WorkflowExecutionDescription], bool]) -> None:
        """Wait until the server's description of the run fits."""

        async def fits() -> bool:
            with suppress(PerdureError):
                return true(await self.run.describe())
            return False

        await until(fits)

    async def until_waiting_for_slot(self, activity_type: str) -> None:
        """Wait until an activity of that type is scheduled, and no worker has taken it."""
        await self.until_described(
            lambda described: any(
                pending.activity_type.name == activity_type and pending.state == _WAITING_FOR_SLOT
                for pending in described.raw_description.pending_activities
            )
        )

    async def until_status(self, true: Callable[[RunStatus], bool]) -> None:
        """Wait until the run's own status fits."""

        async def fits() -> bool:
            with suppress(PerdureError):
                return true(await self.run.status())
            return False

        await until(fits)

    async def until_asking(self) -> None:
        """Wait until an approval is asked for, in the run or below it."""
        await self.until_status(lambda status: bool(status.waiting))

    async def decision(self, *, allow: bool) -> dict[str, Any]:
        """Return a decision about the call that waits, as the person saw it."""
        approval = await insist(self.run.find_approval)
        below = {"run_id": approval.run_id} if approval.path else {}
        return {"call_id": approval.call_id, "allow": allow, "digest": approval.digest} | below


async def insist(call: Callable[[], Awaitable[_T]]) -> _T:
    """Make a call that has one effect again and again, while an overloaded worker does not answer in time."""
    while True:
        with suppress(NotReachable):
            return await call()


Play = Callable[[Played], Awaitable[None]]


@dataclass(frozen=True, kw_only=True)
class Moment:
    """A moment of a run. `prepare` needs slots of the worker; `arrive` happens when none is left."""

    name: str
    kinds: tuple[tuple[Kind, str], ...]
    """Kinds of run that differ there, each with its agent."""
    arrive: Play
    prepare: Play | None = None
    takes_slots: bool = True
    fills_disk: bool = False
    wide: bool = False
    tasks: int = 2
    """Most workflow tasks of the run between the request and the end."""
    attempts: int = 0
    """Most attempts of activities that begin between them: what a run must still ask before its end."""


async def _wait_to_begin(played: Played) -> None:
    await played.begin()
    await played.until_waiting_for_slot(RESOLVE_AGENT)


async def _be_held_up(played: Played) -> None:
    await played.begin()
    await played.until_status(lambda status: "tries again" in status.doing)


async def _park(played: Played) -> None:
    await played.begin()
    await played.until_status(lambda status: status.status == "parked")


async def _redrive(played: Played) -> None:
    played.wait_for(played.run.calls.update(REDRIVE, {"newest": True}))
    await played.until_waiting_for_slot(RESOLVE_AGENT)


async def _ask(played: Played) -> None:
    await played.begin()
    await played.until_asking()


async def _ask_again(played: Played) -> None:
    """Reset the run to its beginning, and wait until it asks again."""
    await _ask(played)
    temporal = played.stage.client.temporal
    reset = await temporal.workflow_service.reset_workflow_execution(
        ResetWorkflowExecutionRequest(
            namespace=temporal.namespace,
            workflow_execution=WorkflowExecution(workflow_id=played.id),
            reason="proof",
            request_id=f"reset-{played.id}",
            workflow_task_finish_event_id=4,  # the first workflow task's end
        )
    )
    await played.until_described(lambda described: described.run_id == reset.run_id)
    await played.until_asking()


async def _nothing(played: Played) -> None:
    """Stay where the run is."""


async def _allow(played: Played) -> None:
    decision = await played.decision(allow=True)
    played.wait_for(played.run.calls.update(RESOLVE_APPROVAL, decision))


async def _relay(played: Played) -> None:
    await _allow(played)
    await played.until_waiting_for_slot(RELAY)


async def _wait_for_tool(played: Played) -> None:
    await _allow(played)
    await played.until_waiting_for_slot(CALL_TOOL)


async def _wait_for_model(played: Played) -> None:
    decision = await played.decision(allow=False)
    with suppress(InvalidRequest):  # decided already, by an attempt whose answer got lost
        await insist(lambda: played.run.calls.update(RESOLVE_APPROVAL, decision))
    await played.until_waiting_for_slot(CALL_MODEL)


async def _renew(played: Played) -> None:
    """Relay a decision to a run below that ends meanwhile: its parent then continues as new, but for the handler."""
    await _relay(played)
    [below] = await insist(played.run.children)
    await below.stop()
    await played.until_described(
        lambda described: (
            described.history_length > EVENTS_BEFORE_RENEWAL
            and not described.raw_description.pending_children
            and not described.raw_description.HasField("pending_workflow_task")
        )
    )


async def _wait_below(played: Played) -> None:
    """Let the second run below wait for its beginning."""
    [first] = await insist(played.run.children)
    await first.stop()

    async def is_second() -> bool:
        nodes = await insist(played.run.children)
        return any(run.id != first.id for run in nodes)

    await until(is_second)


async def _crowd(played: Played) -> None:
    played.stage.model.hanging.clear()
    await played.begin()

    async def are_hanging() -> bool:
        return played.stage.model.hanging["hangs"] >= CROWD

    await until(are_hanging)


_TEAMS: Final[tuple[tuple[Kind, str], ...]] = (("swarm", "swarm"), ("graph", "graph"), ("pattern", "pattern"))

MOMENTS: Final = (
    Moment(
        name="not begun",
        kinds=(("run", "plain"), ("session", "plain"), *_TEAMS),
        arrive=_wait_to_begin,
    ),
    Moment(
        name="resolving, storage full",
        kinds=(("run", "wordy"), ("session", "wordy")),
        arrive=_be_held_up,
        takes_slots=False,
        fills_disk=True,
    ),
    Moment(
        name="parked, storage full",
        kinds=(("run", "boaster"), ("session", "boaster")),
        arrive=_park,
        takes_slots=False,
        fills_disk=True,
    ),
    Moment(
        name="redriving",
        kinds=(("run", "broken"), ("session", "broken")),
        prepare=_park,
        arrive=_redrive,
    ),
    Moment(
        name="relaying a decision",
        kinds=(("run", "boss"), ("session", "boss"), *_TEAMS),
        prepare=_ask,
        arrive=_relay,
        tasks=8,
    ),
    Moment(
        name="continuing as new",
        kinds=(("run", "worker"),),
        prepare=_ask,
        arrive=_renew,
    ),
    Moment(
        name="tool waits for a slot",
        kinds=(("run", "payer"), ("session", "payer")),
        prepare=_ask,
        arrive=_wait_for_tool,
        tasks=3,
    ),
    Moment(
        name="model waits for a slot",
        kinds=(("run", "payer"), ("session", "payer")),
        prepare=_ask,
        arrive=_wait_for_model,
        tasks=3,
    ),
    Moment(
        name="hooks at the end have no slot",
        kinds=(("run", "inspected"),),
        prepare=_ask,
        arrive=_nothing,
        tasks=3,
    ),
    Moment(
        name="hooks after a reset have no slot",
        kinds=(("run", "inspected"),),
        prepare=_ask_again,
        arrive=_nothing,
        tasks=3,
    ),
    Moment(
        name="run below has not begun",
        kinds=(("graph", "graph"), ("pattern", "pattern")),
        prepare=_ask,
        arrive=_wait_below,
        tasks=8,
    ),
    Moment(
        name=f"{CROWD} children in flight",
        kinds=(("run", "leader"), ("session", "leader"), ("graph", "wide_graph")),
        arrive=_crowd,
        takes_slots=False,
        wide=True,
        tasks=3 * CROWD,
    ),
)
