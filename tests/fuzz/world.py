"""A world without a server: shells that play `AgentWorkflow`'s loop, and channels between them.

A shell carries out what `decide` says and folds what comes back, as `workflows/agent.py`, `flights.py`
and `runs.py` do. Nothing happens by itself: whoever plays the world says which of the things under way
comes next. Signals from one run to another keep their order; everything else comes in any order.
"""

import json
from collections import deque
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, Literal, get_args

from perdure.graph import GraphCode
from perdure.messages import Message, ReplyMeta, Text, ToolCall, ToolResult, Usage
from perdure.scheduling import Start
from perdure.wire.effects import ModelOutcome
from perdure.wire.ids import child_key, child_run_id
from perdure.wire.requests import RunRequest
from perdure.wire.results import ENDED, Failure, RunResult, Status
from perdure.wire.spec import ResolvedAgent
from perdure.wire.tree import Amount, ChildInput, Report
from perdure.workflows.child_runs import PlaceBelow, input_for, request_for
from perdure.workflows.engine.account import limits_of, spent
from perdure.workflows.engine.agent_calls import is_error, result_text
from perdure.workflows.engine.amounts import FIELDS, least, of
from perdure.workflows.engine.carry import HistoryFormat, pack, unpack
from perdure.workflows.engine.clocks import people_event, waits_for_people
from perdure.workflows.engine.commands import (
    CallModel,
    CallTools,
    CancelPending,
    CloseTurn,
    Command,
    Finish,
    GrantChildren,
    MoveWindow,
    OpenTurn,
    RequestBudget,
    StartNodes,
    Wait,
)
from perdure.workflows.engine.events import (
    BudgetGranted,
    BudgetRequested,
    CallsStarted,
    ChildEnded,
    ChildGranted,
    ChildReported,
    EndRequested,
    Event,
    GraceExpired,
    NodesStarted,
    Paused,
    Replied,
    Resumed,
    StepBegan,
    TurnBegan,
    TurnEnded,
    WindowMoved,
)
from perdure.workflows.engine.family import NOT_HEARD
from perdure.workflows.engine.program import RunningProgram
from perdure.workflows.engine.programs import program_for
from perdure.workflows.engine.report import report_due, status_of, waiting_of
from perdure.workflows.engine.session import SessionProgram
from perdure.workflows.engine.state import AgentState, Call, End, Origin, RunState
from perdure.workflows.engine.tree import held_by_children
from tests.unit.runs import NOW, details, program_of, status_report

MOST_MOVES = 300
"""Of a shell, until it has to wait: more, and decide and fold go round in circles."""

Flight = Literal["model", "tool", "function", "child"]


@dataclass
class Shell:
    """One run."""

    world: "World" = field(repr=False)
    id: str
    state: RunState
    parent: "Shell | None" = None
    code: GraphCode = field(default_factory=GraphCode)
    flying: dict[str, Flight] = field(default_factory=dict[str, Flight])
    children: dict[str, "Shell"] = field(default_factory=dict[str, "Shell"])
    called_by: dict[str, Call] = field(default_factory=dict[str, Call])
    """The calls for which agents run, by the key of the run."""
    events: deque[Event] = field(default_factory=deque[Event])
    granted: int = 0
    """Tokens that the answer under way may have."""
    recalling: bool = False
    """It waits for what it has called back, and for nothing else."""
    recalled: bool = False
    recalled_for: str | None = None
    renews: bool = False
    """Its history is long: it is to continue as new."""
    parts: int = 1
    end: End | None = None
    result: RunResult | None = None
    waited_in: RunState | None = None
    """Its state when it last waited."""

    @property
    def program(self) -> RunningProgram[Any]:
        """The program of its kind."""
        return program_of(self.state, self.code)

    # -- the loop

    def wake(self, *events: Event) -> None:
        """What happens when these arrive."""
        if self.end is not None:
            return
        self.events.extend(events)
        if self.recalling and self.flying:
            return
        self.recalling = False
        self._loop()

    def lose_patience(self) -> None:
        """The grace of what was called back is over."""
        self.recalling = False
        self._loop()

    def be_cancelled(self) -> None:
        """Cancelled from outside: nothing is too urgent to hear it."""
        if self.end is None:
            self.recalling = False
            self.events.append(EndRequested(reason="cancelled"))
            self._loop()

    def _loop(self) -> None:
        for _ in range(MOST_MOVES):
            while self.events:
                event = self.events.popleft()
                self.apply(event)
                if isinstance(event, Paused | Resumed):
                    self._tell_all(event)
            command = self.decided()
            self.world.check_command(self, command)
            self._note_people(command)
            if self._carried_out(command):
                return
        raise AssertionError("decide and fold go round in circles")

    def _note_people(self, command: Command) -> None:
        """Fold since when it waits for people alone, and see that nothing else is under way then."""
        waits = isinstance(command, Wait)
        now = self.world.time
        event = people_event(self.waited_in, self.state, now, waits=waits)
        if event is not None:
            self.apply(event)
        people = self.state.people
        if people.since is not None:
            assert not any(kind != "child" for kind in self.flying.values())
            # A child whose question was just answered has not reported yet that it goes on.
            assert waiting_of(self.state) or self.state.tree.children, "somebody is asked something"
            assert self.state.started_at <= people.since <= now
        waited = people.total + (now - people.since if people.since else timedelta())
        assert waited <= now - self.state.started_at, "no time counts twice"
        # What was called back ends before anybody looks at the clock again.
        if waits and self.state.ending is None:
            assert (people.since is not None) == waits_for_people(self.state)
            self.waited_in = self.state

    def _carried_out(self, command: Command) -> bool:
        """Do it; True when there is something to wait for."""
        match command:
            case CallModel() | StartNodes() if self.renews:
                return self._renewed()
            case Wait() if self.renews and isinstance(self.state, AgentState) and self.state.session:
                session = self.state.session
                if session.turn_is_open or session.queue:
                    return self._waits()
                return self._renewed()
            case Wait():
                return self._waits()
            case CancelPending():
                return self._recall()
            case Finish():
                self._over(command.end)
                return True
            case _:
                self._do(command)
                return False

    def _waits(self) -> bool:
        self._tell_parent()
        return True

    def _renewed(self) -> bool:
        """Continue as new, when nothing is in flight."""
        if self.state.is_busy:
            return self._waits()
        before, said = self.state, self.decided()
        carried = json.loads(json.dumps(pack(self.program, before, HistoryFormat(layout=2))))
        after, writing = unpack(self.program, carried[0], carried[1:])
        assert after == before
        assert writing == HistoryFormat(layout=2)
        self.state, self.renews, self.recalled = after, False, False
        self.parts += 1
        assert self.decided() == said, "what is next does not depend on who remembers it"
        return False

    def _do(self, command: Command) -> None:  # noqa: C901 - one case a command
        match command:
            case CallModel():
                self.apply(StepBegan(clamped_by=command.allowance.limited_by))
                self.granted = command.allowance.max_tokens
                self.flying["model"] = "model"
            case CallTools():
                self.apply(CallsStarted(ids=tuple(call.call.id for call in command.calls)))
                self.world.ran |= {(self.id, call.call.id) for call in command.calls}
                for call in command.calls:
                    self._call(call)
            case StartNodes():
                self.apply(NodesStarted(starts=command.starts, at=self.world.now()))
                for start in command.starts:
                    self._start_node(start)
            case GrantChildren():
                for key, grant in command.grants:
                    self.apply(ChildGranted(key=key, grant=grant))
                    self._tell(key, BudgetGranted(grant=grant))
            case RequestBudget():
                self._tell_parent(command)
                self.apply(BudgetRequested(request=command.request))
            case MoveWindow():
                self.apply(WindowMoved(start=command.start))
            case OpenTurn():
                self.apply(TurnBegan(at=self.world.now()))
            case CloseTurn():
                self.apply(TurnEnded(end=command.end, at=self.world.now()))
                self.recalled = False
                self.world.unheard(self)
                # What was given up in a turn must not come back in another.
                self.flying = {key: kind for key, kind in self.flying.items() if kind == "child"}
            case _:
                raise AssertionError(f"{command!r} is not to be done")

    def _call(self, call: Call) -> None:
        assert isinstance(self.state, AgentState)
        if call.kind != "agent":
            self.flying[call.call.id] = "tool"
            return
        tool = self.state.spec.tool(call.call.name)
        assert tool is not None
        assert tool.agent is not None
        key = child_key(tool.agent, call.call.id)
        self.called_by[key] = call
        self._start(Start(key=key, node=tool.agent, kind="agent", member=tool.agent, prompt="do it"))

    def _start_node(self, start: Start) -> None:
        if start.kind == "function":
            self.flying[start.key] = "function"
        else:
            self._start(start)

    def _start(self, start: Start) -> None:
        branch = input_for(
            self.state, start, self.world.now(), PlaceBelow(parent_execution_id="family", identity=start.key)
        )
        self.flying[start.key] = "child"
        self.children[start.key] = self.world.born(self, start, request_for(self.state, start), branch)

    def _recall(self) -> bool:
        ending = self.state.ending
        if self.recalled and (self.recalled_for == ending or ending != "cancelled"):
            self.recalled = False
            self.apply(GraceExpired())
            return False
        self.recalled, self.recalled_for = True, ending
        for key, kind in self.flying.items():
            if kind == "child":
                gently = ending not in (None, "cancelled")
                self._tell(key, EndRequested(reason="stopped" if gently else "cancelled"))
        if not self.flying:
            return False
        self.recalling = True
        return True

    def _over(self, end: End) -> None:
        self.world.unheard(self)
        for key in [key for key, kind in self.flying.items() if kind == "child"]:
            self.world.give_up(self.children[key])
        self.state = replace(self.state, end=end)
        self.end = end
        self.result = self.program.result(self.state, end)
        branch = self.state.tree.lineage
        if self.parent is None or branch is None:
            self.world.orphaned(self)
            return
        outcome = self.result
        if end.failure is None and end.stop_reason == "cancelled":
            # Temporal keeps no result of it: its parent is told before.
            self._report(
                Report(key=branch.key, parent_execution_id=branch.parent_execution_id, final=self.result)
            )
            outcome = RunResult(agent=self.result.agent, stop_reason="cancelled", usage=Usage(estimated=True))
        self.world.send(self, self.parent, outcome)
        self.world.orphaned(self)

    # -- what it knows and says

    def decided(self) -> Command:
        """What is next; asking changes nothing."""
        return self.program.decide(self.state)

    def apply(self, event: Event) -> None:
        """Fold the event, and see that it was done properly."""
        before = self.state
        after = self.folded(event)
        self.world.check_fold(self, before, event, after)
        self.state = after

    def folded(self, event: Event) -> RunState:
        """The state after the event."""
        after: RunState = self.program.fold(self.state, event)
        return after

    def _tell_parent(self, ask: RequestBudget | None = None) -> None:
        branch = self.state.tree.lineage
        if branch is None:
            return
        report, told = report_due(self.state, ask.request if ask else None)
        if report is not None:
            self.apply(told)
            self._report(report)

    def _report(self, report: Report) -> None:
        assert self.parent is not None
        self.world.send(self, self.parent, ChildReported(report=report))

    def _tell(self, key: str, event: Event) -> None:
        if key in self.children and self.flying.get(key) == "child":
            self.world.send(self, self.children[key], event)

    def _tell_all(self, event: Event) -> None:
        for key, kind in list(self.flying.items()):
            if kind == "child":
                self._tell(key, event)

    # -- what comes back

    def child_ended(self, key: str, outcome: RunResult) -> None:
        """The run of that key is over."""
        self.flying.pop(key, None)
        if not self.hears_of(key):
            self.world.give_up(self.children[key])
        result = None
        call = self.called_by.get(key)
        if call is not None:
            text = Text(text=result_text(outcome))
            result = ToolResult(
                call_id=call.call.id, name=call.call.name, content=[text], is_error=is_error(outcome)
            )
        self.wake(ChildEnded(key=key, outcome=outcome, at=self.world.now(), result=result))

    def hears_of(self, key: str) -> bool:
        """It goes on, and has not given the child up."""
        return self.end is None and self.state.tree.child(key) is not None

    def land(self, key: str, *events: Event) -> None:
        """A model call, tool call or function has come back."""
        del self.flying[key]
        self.wake(*events)


@dataclass
class World:
    """All runs of a tree, and what is on its way between them."""

    shells: dict[str, Shell] = field(default_factory=dict[str, Shell])
    channels: dict[tuple[str, str], deque[Event | RunResult]] = field(
        default_factory=dict[tuple[str, str], deque["Event | RunResult"]]
    )
    codes: dict[str, GraphCode] = field(default_factory=dict[str, GraphCode])
    truth: Usage = Usage()
    """What the models have really used, as their answers said that arrived."""
    truth_microusd: int = 0
    lost: bool = False
    """Something was used that nobody heard of."""
    unknowable: bool = False
    """Something was lost that nobody could have counted or forbidden."""
    ticks: int = 0
    accepted: dict[str, str] = field(default_factory=dict[str, str])
    """The messages that were accepted, each with the run that it was sent to."""
    ran: set[tuple[str, str]] = field(default_factory=set[tuple[str, str]])
    """The calls that were started, by run."""
    unheard_of: set[str] = field(default_factory=set[str])
    """Runs that were given up, or ended by force: what they have left undone, nobody knows."""
    last_words: set[str] = field(default_factory=set[str])
    """Runs whose last report, with their result, has arrived before they were given up."""

    def now(self) -> Any:
        """The time; it never stands still."""
        self.ticks += 1
        return self.time

    @property
    def time(self) -> Any:
        """The time, for who only looks at it."""
        return NOW + timedelta(seconds=self.ticks)

    # -- runs

    def begin(self, found: ResolvedAgent, request: RunRequest, session: Any = None) -> Shell:
        """The root of the tree."""
        birth = Origin(id="root", members=found.members)
        state: RunState
        if session is not None:
            state = SessionProgram(program_for(found.spec)).open(session, self.now(), birth)
        else:
            state = _initial(found, request, self.now(), birth)
        return self._shell("root", state, None)

    def born(self, parent: Shell, start: Start, request: RunRequest, branch: ChildInput) -> Shell:
        """A run that another one starts."""
        found = self.resolved[str(start.member)]
        run_id = child_run_id(parent.id, start.key)
        birth = Origin(id=run_id, members=found.members, child=branch)
        assert run_id not in self.shells, "no two runs of one id"
        shell = self._shell(run_id, _initial(found, request, self.now(), birth), parent)
        self.new.append(shell)
        return shell

    resolved: dict[str, ResolvedAgent] = field(default_factory=dict[str, ResolvedAgent])
    """What each agent, swarm and graph resolves to."""
    new: list[Shell] = field(default_factory=list[Shell])
    """Runs that have been started, and have not begun."""

    def _shell(self, run_id: str, state: RunState, parent: Shell | None) -> Shell:
        code = self.codes.get(state.spec.name, GraphCode())
        shell = self.shells[run_id] = Shell(world=self, id=run_id, state=state, parent=parent, code=code)
        return shell

    def orphaned(self, shell: Shell) -> None:
        """Temporal cancels the children of a run that is over."""
        for child in shell.children.values():
            if child.end is None:
                self.channels.setdefault((f"{shell.id} closed", child.id), deque()).append(
                    EndRequested(reason="cancelled")
                )

    @property
    def alive(self) -> list[Shell]:
        """Runs that go on."""
        return [shell for shell in self.shells.values() if shell.end is None]

    # -- messages

    def send(self, sender: Shell, target: Shell, what: Event | RunResult) -> None:
        """Put it on its way, behind what went that way before."""
        self.channels.setdefault((sender.id, target.id), deque()).append(what)

    @property
    def waiting(self) -> list[tuple[str, str]]:
        """The channels on which something is under way."""
        return [ends for ends, queue in self.channels.items() if queue]

    def deliver(self, ends: tuple[str, str]) -> None:
        """Deliver the first of what is under way there. What is for a run that is over, nobody hears."""
        what, target = self.channels[ends].popleft(), self.shells[ends[1]]
        if target in self.new:
            self.new.remove(target)
            target.wake()
        if isinstance(what, ChildReported) and what.report.final and target.hears_of(what.report.key):
            self.last_words.add(ends[0])
        if isinstance(what, RunResult):
            key = next(key for key, child in target.children.items() if child.id == ends[0])
            target.child_ended(key, what)
        elif isinstance(what, EndRequested) and what.reason == "cancelled":
            target.be_cancelled()
        else:
            target.wake(what)

    def terminate(self, shell: Shell) -> None:
        """Somebody ends a run by force: it says nothing any more."""
        assert shell.parent is not None
        self.unknowable = True
        self.unheard_of.add(shell.id)
        shell.end = End(stop_reason="error")
        failure = Failure(kind="Terminated", message="the run was terminated")
        outcome = RunResult(
            agent=shell.state.spec.name,
            stop_reason="error",
            error=failure,
            usage=Usage(estimated=True),
            cost_microusd=0,
            missing=[NOT_HEARD],
        )
        self.send(shell, shell.parent, outcome)
        self.orphaned(shell)
        if shell in self.new:
            self.new.remove(shell)

    def give_up(self, shell: Shell) -> None:
        """A run is waited for no longer: what it has left undone is known if its last report has arrived."""
        if shell.id not in self.last_words:
            self.unheard_of.add(shell.id)

    # -- models

    def unheard(self, shell: Shell) -> None:
        """A model call that was given up is paid for all the same; the run says that it does not know."""
        if "model" in shell.flying:
            assert shell.state.ledger.usage.estimated
            self.lost = True

    def answer(
        self,
        shell: Shell,
        calls: list[ToolCall],
        *,
        stop: Any,
        text: str = "",
        part: float = 0.0,
        cached: float = 0.0,
        output: Any = None,
    ) -> None:
        """The model of that run answers, with as much of what it was allowed."""
        state = shell.state
        assert isinstance(state, AgentState)
        read = state.transcript.context_tokens
        usage = Usage(
            input_tokens=read - int(read * cached),
            cache_read_tokens=int(read * cached),
            output_tokens=int(shell.granted * part),
        )
        price = state.spec.models[state.chain.model].price
        cost = price.cost_microusd(usage) if price else None
        meta = ReplyMeta(step=state.ledger.steps, model="m", usage=usage, cost_microusd=cost)
        numbered = [
            one.model_copy(update={"id": f"call-{state.ledger.steps}-{n}"}) for n, one in enumerate(calls, 1)
        ]
        message = Message(
            role="assistant", parts=[*([Text(text=text)] if text else []), *numbered], meta=meta
        )
        self.truth += usage
        self.truth_microusd += cost or 0
        outcome = ModelOutcome(message=message, stop=stop, output=output)
        shell.land("model", Replied(outcome=outcome, at=self.now()))

    # -- what always holds

    def check_fold(self, shell: Shell, before: RunState, event: Event, after: RunState) -> None:
        """A state is followed by another, never changed; the past stays what it was."""
        assert after.ledger.usage.total_tokens >= before.ledger.usage.total_tokens
        assert after.ledger.cost_microusd >= before.ledger.cost_microusd
        assert after.ledger.tool_calls >= before.ledger.tool_calls
        if isinstance(before, AgentState) and isinstance(after, AgentState):
            assert after.messages[: len(before.messages)] == before.messages, "a transcript only grows"
            assert after.ledger.steps >= before.ledger.steps
            self._check_transcript(after)
        self._check_children(shell, after)

    def _check_transcript(self, state: AgentState) -> None:
        """Each call is answered once, by the message after the one that asked; the last may be open."""
        open_calls = [call.call.id for call in state.step.calls]
        answered: list[str] = []
        for index, message in enumerate(state.messages):
            asked = [call.id for call in message.tool_calls]
            if not asked:
                assert message.role != "tool" or state.messages[index - 1].tool_calls
                continue
            assert message.role == "assistant"
            if index + 1 == len(state.messages):
                assert asked == open_calls, "what is not answered is under way"
            else:
                results = state.messages[index + 1].tool_results
                assert [result.call_id for result in results] == asked
                answered += asked
        assert len(answered) == len(set(answered))
        assert not (state.step.asking_model and state.step.calls), "the model is asked, or calls are open"

    def _check_children(self, shell: Shell, state: RunState) -> None:
        keys = [child.key for child in state.tree.children]
        assert len(keys) == len(set(keys))

    def check_command(self, shell: Shell, command: Command) -> None:
        """BudgetRequested twice it says the same; and what it says can be done."""
        state = shell.state
        assert shell.decided() == command
        _check_told(state)
        _check_limits(state, budgeted=not self.unknowable)
        if isinstance(command, CallModel):
            assert isinstance(state, AgentState)
            assert not any((state.step.asking_model, state.runs_tools, state.step.calls, state.paused))
            assert (state.parking.parked, state.ending, state.end) == (None, None, None)
            assert 0 < command.allowance.max_tokens <= state.spec.models[state.chain.model].config.max_tokens
        if isinstance(command, CallTools):
            assert isinstance(state, AgentState)
            assert command.calls
            assert not any((state.paused, state.ending, state.end))
            assert all(call.state == "ready" for call in command.calls)
        if isinstance(command, StartNodes):
            assert command.starts
            assert not any((state.paused, state.ending, state.end))
        if isinstance(command, Finish | CloseTurn):
            assert not state.is_busy or state.end is None
            assert not (isinstance(state, AgentState) and state.step.calls), (
                "no call is left without its result"
            )

    def check_stuck(self) -> None:
        """Whoever waits waits for something that comes, or for people who can find it at the root."""
        root = self.shells["root"]
        if self.waiting or self.new or root.end is not None:
            return
        flying = any(kind != "child" for shell in self.alive for kind in shell.flying.values())
        if flying or any(shell.recalling for shell in self.alive):
            return
        status = status_of(root.state)
        assert status in ("waiting_approval", "waiting_person", "parked", "paused", "idle"), (
            f"nothing is under way, and nobody can find out whom it waits for: {status}"
        )

    def check_spent(self, limits: Amount) -> None:
        """What all have used together, as their models said, is within the limits of the root."""
        if self.unknowable or self.lost:
            return
        used = {
            "cost_microusd": self.truth_microusd,
            "input_tokens": self.truth.all_input_tokens,
            "output_tokens": self.truth.output_tokens,
            "total_tokens": self.truth.total_tokens,
        }
        for name, value in used.items():
            most = of(limits, name)
            assert most is None or value <= most, f"{name}: {value} of {most}"
        calls = limits.tool_calls
        assert calls is None or self.tool_calls(self.shells["root"]) <= calls

    def tool_calls(self, shell: Shell) -> int:
        """Of a run and of those below it whose end it has not heard."""
        below = (child for key, child in shell.children.items() if shell.flying.get(key) == "child")
        booked = {child.key for child in shell.state.tree.children}
        known = {child.id: key for key, child in shell.children.items()}
        return shell.state.ledger.tool_calls + sum(
            self.tool_calls(child) for child in below if known[child.id] in booked
        )


def _initial(found: ResolvedAgent, request: RunRequest, now: Any, birth: Origin) -> RunState:
    state: RunState = program_for(found.spec).initial(request, now, birth)
    return state


def _check_told(state: RunState) -> None:
    """It can always say where it is."""
    status = status_of(state)
    assert status in get_args(Status)
    assert (status in ENDED) == (state.end is not None)
    report = status_report(state)
    assert report.status == status
    assert details(state).startswith(f"**{status}**")
    assert len(waiting_of(state)) >= len(report.waiting)


def _check_limits(state: RunState, *, budgeted: bool) -> None:
    limits = state.limits
    if isinstance(state, AgentState):
        assert limits.steps is None or state.ledger.steps <= limits.steps
        for name, most in limits.per_tool.items():
            assert state.ledger.per_tool.get(name, 0) <= most
    if not budgeted:
        return
    there = least(limits_of(state), state.tree.lease.amount)
    used, lent = spent(state), held_by_children(state.tree)
    for name in FIELDS:
        bound = of(there, name)
        if name == "total_tokens" and state.ledger.usage.estimated:
            # Whoever was given up is booked with all that it might have used, of each kind.
            continue
        total = (of(used, name) or 0) + (of(lent, name) or 0)
        assert bound is None or total <= bound, f"{name}: {total} of {bound} spent or lent"


def flights(world: World, kind: Flight) -> list[tuple[Shell, str]]:
    """All of that kind that are under way."""
    return [
        (shell, key)
        for shell in world.alive
        if shell not in world.new
        for key, one in shell.flying.items()
        if one == kind
    ]
