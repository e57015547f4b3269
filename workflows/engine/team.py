"""Team: a run that only directs others, as a swarm, a graph or a pattern of one's own does.

The scheduler chooses which node runs and says when the team is over. What all teams share stands here: time,
money, people, the end. In a session each turn gives the team a new task; the conversation so far goes with it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from perdure.graph import as_text
from perdure.limits import Limits
from perdure.messages import Message, Part, Text, size_bytes
from perdure.model import canonical_json
from perdure.scheduling import Notes, Over, Scheduler, Start, progress_adapter
from perdure.wire.ids import child_run_id
from perdure.wire.requests import RunRequest
from perdure.wire.results import NodeResult, NodeState, NodeStatus, RunResult, RunStatus, StopReason
from perdure.wire.spec import AnySpec
from perdure.wire.tree import Amount, BudgetRequest

from . import tree
from .account import limits_of, room, spent
from .amounts import FIELDS, REASONS, of
from .clocks import clock_of, counted_deadline
from .commands import CancelPending, Command, Finish, RequestBudget, StartNodes, Wait
from .cut import Restarts, child_since, cut_to_restart, is_cut_short, outcome_since
from .events import (
    AnswerRelayed,
    ApprovalRelayed,
    BudgetGranted,
    BudgetRequested,
    ChildEnded,
    ChildGranted,
    ChildReported,
    EndRequested,
    Event,
    GraceExpired,
    NodesStarted,
    ParentInformed,
    Paused,
    PeopleAnswered,
    PeopleAwaited,
    Resumed,
)
from .extension import (
    FIELDS_BY_REASON,
    amounts_needed,
    calls_needed,
    clocks_after,
    limits_after,
    past_after,
    team_limits_after,
)
from .family import (
    book,
    command_for_children,
    ending_reason,
    fold_tree_event,
    function_under_way,
    unheard_outcome,
)
from .handovers import handed_on_to, record_handover, record_takeover
from .past import Cut, Extension
from .shared_limits import is_at_deadline, note_shared_limit, shared_limit
from .state import End, Origin
from .team_report import team_details, team_result, team_status
from .team_state import TeamState

MOST_STARTED_BYTES: Final = 1024 * 1024
"""Most bytes of prompts and inputs in one workflow task: the server ends a run that sends it more."""
MOST_REMEMBERED_BYTES: Final = 64 * 1024
"""Most bytes of a session's earlier turns that a node is given with its task."""
_LEAST_ROOM = Amount(cost_microusd=1, input_tokens=1, output_tokens=1, total_tokens=1)
"""With less than this left, no node is worth starting."""


@dataclass(frozen=True)
class TeamProgram:
    """Program of a team: the rules of this file around one scheduler."""

    spec: AnySpec
    scheduler: Scheduler[Any]
    state_type = TeamState

    def initial(self, request: RunRequest, now: datetime, origin: Origin) -> TeamState:
        """Return the state of a team that begins."""
        return self._with_task(self.empty(request, now, origin), request.prompt)

    def empty(self, request: RunRequest, now: datetime, origin: Origin) -> TeamState:
        """Return the state before any task."""
        tightened = self.spec.limits.tightened_by(request.limits)
        # The scheduler reads the limits of its own kind from the spec; all others are those of any run.
        limits = Limits.model_validate(tightened.model_dump(include=set(Limits.model_fields)))
        return TeamState(
            request=request,
            spec=self.spec,
            limits=limits,
            started_at=now,
            deadline_at=counted_deadline(self.spec, limits, now, origin.child),
            clock=clock_of(self.spec, limits, now, origin.child),
            id=origin.id,
            members=origin.members,
            tree=tree.tree_of(origin.child),
        )

    def restore(self, state: TeamState) -> TeamState:
        """Return the carried state with its progress as a value: the state itself holds it as JSON."""
        if state.progress is None:
            return state
        read = progress_adapter(self.scheduler.progress_type).validate_python
        # The state itself holds both as JSON.
        cut = (
            state.cut if state.cut.progress is None else replace(state.cut, progress=read(state.cut.progress))
        )
        return replace(state, progress=read(state.progress), cut=cut)

    # -- after a limit

    def go_on(self, state: TeamState, extension: Extension) -> TeamState:
        """Return the closed team's state with its end taken back; what its limit cut short goes on."""
        past, limits = past_after(state, extension), limits_after(state, extension)
        granted = team_limits_after(state.spec.limits, extension)
        spec_limits = state.spec.limits.model_copy(update=granted)
        progress = state.progress if state.cut.progress is None else state.cut.progress
        return replace(
            state,
            # The scheduler reads the bounds of its own kind from the spec.
            # Made anew: a copy would have the old one's digests.
            spec=state.spec.model_validate({**dict(state.spec), "limits": spec_limits}),
            limits=limits,
            **clocks_after(state, limits, past, extension.child),
            past=past,
            progress=progress,
            cut=cut_to_restart(state, extension),
            tree=tree.tree_of(extension.child),
            paused=False,
            ending=None,
            end=None,
        )

    def needs(self, state: TeamState, reason: StopReason) -> list[str]:
        """Return each bound that leaves nothing to start a node with.

        Raises:
            ValueError: the scheduler's own end cannot be taken back.

        """
        over = None if state.cut.again else self.scheduler.over(state.progress)
        if over is not None and over.stop_reason == reason:
            fields = [name for name in FIELDS_BY_REASON[reason] if hasattr(state.spec.limits, name)]
            return [" or ".join(f"{name} (now {getattr(state.spec.limits, name)})" for name in fields)]
        if over is not None:
            raise ValueError(f"its course is over ({over.stop_reason}), and no node was cut short")
        limits, keys = state.limits, [start.key for start in state.cut.again]
        steps = max((result.steps for result in state.results if result.key in keys), default=0)
        granted = state.past.extensions[-1].limits.get("steps", steps)
        at_end = reason == "max_steps" and isinstance(granted, int) and granted <= steps
        least = max(steps + 1, limits.steps or 0)  # no bound becomes smaller
        return [
            *([f"steps to {least} or more"] if at_end else []),
            *calls_needed(state, limits, reason),
            *amounts_needed(limits, state, _LEAST_ROOM),
        ]

    def _with_task(self, team: TeamState, task: str | list[Part]) -> TeamState:
        descriptions = {member.name: member.description for member in team.members}
        return replace(team, task=task, progress=self.scheduler.begin(task, descriptions))

    # -- turns of a session

    def begin_turn(self, state: TeamState, message: Message) -> TeamState:
        """Return the state with the message as the team's next task."""
        state = replace(
            state, running=(), results=(), starts=(), cut=Cut(), conversation=(*state.conversation, message)
        )
        text_only = len(message.parts) == 1 and isinstance(message.parts[0], Text)
        return self._with_task(state, message.text if text_only else list(message.parts))

    def end_turn(self, state: TeamState, end: End) -> TeamState:
        """Return the state without what belonged to the turn alone."""
        answer = as_text(end.output)
        conversation = state.conversation
        if answer.strip():
            reply = Message(role="assistant", parts=[Text(text=answer)])
            conversation = (*conversation, reply)
        state = replace(state, conversation=conversation, ending=None, end=None)
        return replace(state, tree=replace(state.tree, children=()), handovers=(), refused=())

    def newest_words(self, state: TeamState, end: End) -> tuple[str, int | None]:
        """Return the turn's answer as text. It stands in no message."""
        return as_text(end.output), None

    def least_turn(self, state: TeamState) -> Amount:
        """Return the least amount with which a node is worth starting."""
        return _LEAST_ROOM

    # -- what happens

    def fold(self, state: TeamState, event: Event) -> TeamState:
        """Return the state after the event. Events of an agent's own loop change nothing."""
        match event:
            case NodesStarted():
                return self._record_start(state, event)
            case ChildEnded():
                return self._fold_child_end(state, event)
            case ChildReported() | ChildGranted() | BudgetRequested() | BudgetGranted() | ParentInformed():
                return fold_tree_event(state, event)
            case ApprovalRelayed() | AnswerRelayed() | PeopleAwaited() | PeopleAnswered():
                return fold_tree_event(state, event)
            case Paused():
                return replace(state, paused=True)
            case Resumed():
                return replace(state, paused=False)
            case EndRequested() if state.end is None:
                return replace(state, ending=ending_reason(state, event.reason))
            case GraceExpired():
                return self._give_up_running(state)
            case _:
                return state

    def _record_start(self, team: TeamState, event: NodesStarted) -> TeamState:
        again = {start.key for start in team.cut.again}
        leased = [start for start in event.starts if start.kind != "function"]
        lease = tree.lease_for(
            team.tree, limits_of(team), spent(team), len(leased), alone=self.scheduler.runs_alone
        )
        for start in event.starts:
            run_id = None if start.kind == "function" else child_run_id(team.id, start.key)
            node = NodeStatus(
                key=start.key, node=start.node, kind=start.kind, run_id=run_id, started_at=event.at
            )
            team = replace(team, running=(*team.running, node))
            if run_id is not None and start.member is not None:
                child = tree.Child(key=start.key, name=start.member, run_id=run_id, lease=lease)
                member_of = {**team.member_of, start.node: start.member}
                team = replace(team, tree=tree.add_child(team.tree, child), member_of=member_of)
        team = record_takeover(team, event.starts)
        if team.cut.progress is None:
            team = replace(team, starts=(*team.starts, *event.starts))
        keys = {start.key for start in event.starts}
        remaining = tuple(start for start in team.cut.again if start.key not in keys)
        team = replace(team, cut=replace(team.cut, again=remaining))
        # For the scheduler, a node that was cut short still runs.
        fresh = [start for start in event.starts if start.key not in again]
        starts = [replace(start, key=_scheduler_key(team, start.key)) for start in fresh]
        return replace(team, progress=self.scheduler.record_start(team.progress, starts)) if starts else team

    def _fold_child_end(self, team: TeamState, event: ChildEnded) -> TeamState:
        node = next((node for node in team.running if node.key == event.key), None)
        if node is None:
            return team  # it was given up before it answered
        child = team.tree.child(event.key)
        rest = outcome_since(team, event.key, event.outcome)
        team = note_shared_limit(team, event.key, node.node, event.outcome, rest)
        outcome = tree.outcome_of(child_since(team, child), rest) if child else rest
        result = _node_result(node, _state_of(event), outcome, event.at)
        team, result = record_handover(team, result, outcome)
        return self._record_end(_book_result(team, result), result)

    def _record_end(self, team: TeamState, result: NodeResult) -> TeamState:
        planned = result.model_copy(update={"key": _scheduler_key(team, result.key)})
        ended = replace(team, progress=self.scheduler.record_end(team.progress, planned))
        return self._keep_cut(team, ended, result)

    def _keep_cut(self, before: TeamState, team: TeamState, result: NodeResult) -> TeamState:
        """Return the team after the end of a node, with what it needs to let the node go on: see `cut`."""
        started = next((start for start in before.starts if start.key == result.key), None)
        team = replace(team, starts=tuple(start for start in team.starts if start.key != result.key))
        cut = team.cut
        if started is None or (cut.progress is None and not self._is_cut(team, result)):
            return team
        memory = before.progress if cut.progress is None else cut.progress
        if is_cut_short(result):
            return replace(team, cut=replace(cut, progress=memory, nodes=(*cut.nodes, started)))
        planned = result.model_copy(update={"key": _scheduler_key(team, result.key)})
        return replace(team, cut=replace(cut, progress=self.scheduler.record_end(memory, planned)))

    def _is_cut(self, team: TeamState, result: NodeResult) -> bool:
        """Return whether a limit of the team has ended the node, or the node's limit the team."""
        if not is_cut_short(result):
            return False
        is_shared = is_at_deadline(team, result) or result.key in team.cut.shared
        if is_shared or team.ending in FIELDS_BY_REASON:
            return True
        over = self.scheduler.over(team.progress) if result.stop_reason in FIELDS_BY_REASON else None
        return over is not None and over.stop_reason == result.stop_reason

    def _give_up_running(self, team: TeamState) -> TeamState:
        """Go on without nodes that did not answer. Their usage is booked as an estimate."""
        for node in team.running:
            child = team.tree.child(node.key)
            outcome = unheard_outcome(child) if child else _unheard_function(node)
            result = _node_result(node, "cancelled", outcome, None)
            team = _book_result(team, result)
            # A team that is ended from outside asks its scheduler for nothing more.
            asks = team.ending is None
            team = self._record_end(team, result) if asks else self._keep_cut(team, team, result)
        return team

    # -- what to do

    def decide(self, state: TeamState) -> Command:
        """Return the next command."""
        if state.end is not None:
            return CancelPending() if state.is_busy else Finish(end=state.end)
        if state.ending is not None:
            return CancelPending() if state.is_busy else Finish(end=self.early_end(state, state.ending))
        # Before budgets: a team that is over needs no more of them.
        over = self.scheduler.over(state.progress)
        if over is not None:
            return self._finish(state, over)
        return command_for_children(state, busy=False) or self._next_nodes(state)

    def _finish(self, team: TeamState, over: Over) -> Command:
        if team.is_busy:
            waiting = command_for_children(team, busy=False) or Wait()
            return CancelPending() if over.cancel_running else waiting
        reason = over.stop_reason if over.stop_reason != "end_turn" else shared_limit(team) or "end_turn"
        return Finish(end=End(stop_reason=reason, output=over.output, failure=over.failure))

    def _next_nodes(self, team: TeamState) -> Command:
        if team.paused or team.tree.lease.is_asking:
            return Wait()
        startable = self._again(team) or self.startable(team)
        if not startable:
            return Wait()
        starts = _within_one_task(team, startable)
        command = StartNodes(starts=starts, more=len(starts) < len(startable))
        # Functions of a graph call no model, so they cost nothing that a limit counts.
        if all(start.kind == "function" for start in starts):
            return command
        return self._if_affordable(team, command)

    def _again(self, team: TeamState) -> tuple[Start, ...]:
        """Return the nodes that go on after an extension, with the peers that the new limits allow."""
        if not isinstance(self.scheduler, Restarts):
            return team.cut.again
        return tuple(self.scheduler.restart(team.progress, start) for start in team.cut.again)

    def startable(self, team: TeamState) -> tuple[Start, ...]:
        """Return the nodes to start now, with keys that are unique in the run."""
        # The newest message of a person's is the task itself. In a turn that goes on, a partial answer follows it.
        messages_at = [at for at, message in enumerate(team.conversation) if message.role == "user"]
        history = _newest(team.conversation[: messages_at[-1]]) if team.session and messages_at else ()
        return tuple(
            replace(
                start,
                key=_run_key(team, start.key),
                retry_of=_run_key(team, start.retry_of) if start.retry_of else "",
                history=(*history, *start.history),
                handed_on=handed_on_to(
                    team, start.member, _run_key(team, start.retry_of) if start.retry_of else ""
                ),
                memory=start.memory and replace(start.memory, key=_run_key(team, start.memory.key)),
            )
            for start in self.scheduler.startable(team.progress)
        )

    def _if_affordable(self, team: TeamState, command: StartNodes) -> Command:
        available = room(team)
        short = next((name for name in FIELDS if of(_LEAST_ROOM, name) and of(available, name) == 0), None)
        if short is None:
            return command
        if team.is_busy:
            return Wait()  # a running node may give something back
        minimum, lender_could = tree.shortage(team.tree, limits_of(team), spent(team), _LEAST_ROOM)
        if minimum is not None and lender_could:
            return RequestBudget(request=BudgetRequest(minimum=minimum, preferred=minimum))
        return Finish(end=self.early_end(team, REASONS[short]))

    def early_end(self, team: TeamState, reason: StopReason) -> End:
        """Return an end from outside, or by a limit, with the best output so far."""
        newest = team.results[-1].output if team.results else None
        if self.scheduler.runs_alone and isinstance(newest, str) and newest:
            return End(stop_reason=reason, output=newest)
        return End(stop_reason=reason, output=self.scheduler.partial(team.progress))

    # -- what it reports

    def status(self, state: TeamState) -> RunStatus:
        """Return the status."""
        return team_status(state, self._notes(state))

    def result(self, state: TeamState, end: End) -> RunResult:
        """Return the result."""
        return team_result(state, end, self._notes(state))

    def details(self, state: TeamState) -> str:
        """Return the page in the Temporal UI."""
        return team_details(state, self._notes(state))

    def _notes(self, team: TeamState) -> Notes:
        return Notes() if team.progress is None else self.scheduler.notes(team.progress)


def _run_key(team: TeamState, key: str) -> str:
    """Return the key of a node in the run: schedulers count anew in each turn of a session."""
    turn = team.session.turn if team.session else 1
    return key if turn <= 1 else f"turn{turn}.{key}"


def _scheduler_key(team: TeamState, key: str) -> str:
    """Return the key that the scheduler knows: the reverse of `_run_key`."""
    turn = team.session.turn if team.session else 1
    return key if turn <= 1 else key.removeprefix(f"turn{turn}.")


def _newest(messages: Sequence[Message]) -> tuple[Message, ...]:
    """Return the newest messages within the bound, beginning with one of a person's."""
    kept: list[Message] = []
    size = 0
    for message in reversed(messages):
        size += size_bytes(message)
        if kept and size > MOST_REMEMBERED_BYTES:
            break
        kept.append(message)
    while len(kept) > 1 and kept[-1].role != "user":
        kept.pop()
    return tuple(reversed(kept))


def _state_of(event: ChildEnded) -> NodeState:
    if event.outcome.stop_reason == "cancelled":
        return "cancelled"
    return "failed" if event.outcome.error is not None and not event.outcome.answered else "done"


def _node_result(
    node: NodeStatus, state: NodeState, outcome: RunResult, ended_at: datetime | None
) -> NodeResult:
    outcome_fields = outcome.model_dump(
        include={
            "stop_reason",
            "steps",
            "tool_calls",
            "usage",
            "cost_microusd",
            "per_tool",
            "error",
            "output",
            "missing",
        }
    )
    return NodeResult.model_validate(
        {**node.model_dump(), **outcome_fields, "state": state, "ended_at": ended_at}
    )


def _unheard_function(node: NodeStatus) -> RunResult:
    left = [function_under_way(node.node)]
    return RunResult(agent=node.node, stop_reason="cancelled", cost_microusd=0, missing=left)


def _book_result(team: TeamState, result: NodeResult) -> TeamState:
    team = book(
        team,
        result.usage,
        result.cost_microusd,
        tool_calls=result.tool_calls,
        steps=result.steps,
        per_tool=result.per_tool,
    )
    return replace(
        team,
        running=tuple(node for node in team.running if node.key != result.key),
        results=(*team.results, result),
        tree=tree.remove_child(team.tree, result.key),
    )


def _within_one_task(team: TeamState, starts: tuple[Start, ...]) -> tuple[Start, ...]:
    """Return as many starts as one workflow task may carry, and at least one."""
    each = len(canonical_json(team.request.context))
    available = MOST_STARTED_BYTES
    for number, start in enumerate(starts):
        available -= each + len(
            canonical_json([start.prompt, start.inputs, list(start.history), start.handed_on])
        )
        if available < 0 and number > 0:
            return starts[:number]
    return starts
