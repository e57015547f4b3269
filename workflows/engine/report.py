"""What a run says of itself: status, result, details for the UI. Pure."""

import json
from collections.abc import Mapping
from typing import Final, Literal

from perdure.messages import Text, ToolCall
from perdure.planning import plan_checklist
from perdure.wire.names import RESOLVE_APPROVAL
from perdure.wire.results import (
    Approval,
    CallStatus,
    Failure,
    NodeStatus,
    Parked,
    Question,
    RunResult,
    RunStatus,
    Status,
    Waiting,
)
from perdure.wire.spec import GraphSpec, NodeKind
from perdure.wire.tree import Branch, BudgetRequest, Report

from . import graph
from .account import limits_of, spent
from .budget import Want
from .calls import approval_digest
from .state import Call, CallState, End, State, Told
from .team import Team
from .tree import Child, idle_lease, waiting_below

MOST_NODES: Final = 200
"""Most ended runs of nodes that a status holds."""
MOST_SHOWN: Final = 40
_BY_KIND: Final[dict[str, Status]] = {
    "approval": "waiting_approval",
    "question": "waiting_person",
    "parked": "parked",
}
"""Of several, what a person is asked first."""
_IDLE: Final[frozenset[Status]] = frozenset({"waiting_approval", "waiting_person", "paused", "parked"})
_SHOWN: Final[dict[CallState, Literal["ready", "waiting", "running", "done"]]] = {
    "unpaid": "ready",
    "ready": "ready",
    "asking": "waiting",
    "running": "running",
    "done": "done",
}

_WORDS: dict[Status, str] = {
    "thinking": "waiting for the model",
    "acting": "calling tools",
    "waiting_approval": "waiting for a person to approve",
    "waiting_person": "waiting for a person to answer",
    "paused": "paused: resume it to go on",
    "idle": "waiting for the next message",
    "parked": "parked: mend the cause, then resume it, or stop it",
    "stopping": "stopping: calling back what is in flight",
    "completed": "done",
    "failed": "failed",
    "cancelled": "cancelled",
}


def status_of(state: State | Team) -> Status:
    """The run's status, one of the closed set."""
    if state.end is not None:
        return _ended(state.end)
    if state.ending is not None:
        return "stopping"
    if isinstance(state, State) and state.parked is not None:
        return "parked"
    if state.paused:
        return "paused"
    return _working(state)


def _ended(end: End) -> Status:
    if end.failure is not None and not end.answers:
        return "failed"
    return "cancelled" if end.stop_reason == "cancelled" else "completed"


def _working(state: State | Team) -> Status:
    held = [one.kind for one in waiting_of(state)]
    if held:
        return next(status for kind, status in _BY_KIND.items() if kind in held)
    if isinstance(state, Team):
        return "acting"
    if state.session is not None and not state.session.is_open:
        return "idle"
    return "acting" if state.calls or state.resting else "thinking"


def waiting_of(state: State | Team) -> list[Waiting]:
    """Who waits for a person: the run's own calls, then those of the runs below it."""
    own: list[Waiting] = []
    if isinstance(state, State):
        own = [waiting_for(call, state.id) for call in state.calls if call.state == "asking"]
    return [*own, *waiting_below(state.tree)]


def cost_of(state: State | Team) -> int | None:
    """What the run has cost so far; None when it used a model whose price is not known."""
    return None if state.cost_unknown else state.cost_microusd


def report_due(state: State | Team, branch: Branch, want: Want | None) -> tuple[Report | None, Told]:
    """What to tell the parent now, if it does not know it, and what the state is after that.

    A run that only waits for people gives back what it does not need; it asks again when it goes on.
    """
    waiting = waiting_of(state)
    parked = (state.parked or state.outage) if isinstance(state, State) else None
    if parked is not None:
        # Of an outage the parent hears once, and again when it is over: not of every nap.
        waiting.append(Parked(failure=parked, run_id=state.id))
    naps = isinstance(state, State) and state.outage is not None
    ids = [_id_of(one) for one in waiting]
    if want is None and state.tree.asking and state.tree.needed and state.tree.wished:
        want = Want(need=state.tree.needed, wish=state.tree.wished)  # it stands until it is answered
        asks_anew = False
    else:
        asks_anew = want is not None
    idle = want is None and not naps and not _works(state) and status_of(state) in _IDLE
    spare = idle_lease(state.tree, limits_of(state), spent(state)) if idle else None
    told = Told(waiting=(*ids, "idle") if idle else tuple(ids), returned=spare)
    if not asks_anew and spare is None and told.waiting == state.tree.told:
        return None, told
    request = BudgetRequest(minimum=want.need, preferred=want.wish) if want else None
    report = Report(
        key=branch.key,
        parent_execution_id=branch.parent_execution_id,
        waiting=waiting,
        request=request,
        idle=idle,
        returned=spare,
    )
    return report, told


def _works(state: State | Team) -> bool:
    """Whether the run itself does something, beside waiting for those below."""
    if isinstance(state, State):
        return state.asking_model or state.running
    return any(one.run_id is None for one in state.running)


def _id_of(one: Waiting) -> str:
    return f"{one.run_id}/{one.call_id or one.kind}"


def steps_of(state: State | Team) -> int:
    """Model calls: the run's own, or those of a team's nodes."""
    return state.step if isinstance(state, State) else state.steps


def result_of(state: State | Team, end: End) -> RunResult:
    """The run's result."""
    if isinstance(state, Team):
        return team_result(state, end)
    return RunResult(
        agent=state.spec.name,
        output=end.output,
        stop_reason=end.stop_reason,
        steps=state.step,
        tool_calls=state.tool_calls,
        usage=state.usage,
        cost_microusd=cost_of(state),
        spec_hash=state.spec.hash,
        error=end.failure,
        missing=left_undone(state, end),
        answered=end.answers,
    )


def left_undone(state: State, end: End) -> list[str]:
    """What a run that ended early did not get to: calls that were not made, and the rest of its plan."""
    if end.stop_reason in ("end_turn", "handoff"):
        return []
    made = {call.id: call for message in state.messages[state.first :] for call in message.tool_calls}
    newest = next((m for m in reversed(state.messages[state.first :]) if m.role == "tool"), None)
    failed = [result for result in newest.tool_results if result.is_error] if newest else []
    calls = [
        f"{signature(made[one.call_id])}: {_short(one.text, 200)}" for one in failed if one.call_id in made
    ]
    plan = [f"planned: {item.text}" for item in state.plan if item.state in ("pending", "in_progress")]
    return [*calls, *plan]


def status_report(state: State | Team) -> RunStatus:
    """Where the run is, whole."""
    status = status_of(state)
    if isinstance(state, Team):
        return team_status(state, status)
    return RunStatus(
        agent=state.spec.name,
        status=status,
        doing=doing(state, status),
        step=state.step,
        tool_calls=state.tool_calls,
        messages=len(state.messages),
        usage=state.usage,
        cost_microusd=cost_of(state),
        waiting=waiting_of(state),
        nodes=[_child_status(state, child) for child in state.tree.children],
        plan=list(state.plan),
        calls=[_call_status(call) for call in state.calls],
        failure=state.parked or (state.end.failure if state.end else None),
        stop_reason=state.end.stop_reason if state.end else None,
        spec_hash=state.spec.hash,
        model=state.spec.models[state.model].config.name,
        queued=len(state.inbox) + (len(state.session.queue) if state.session else 0),
        kind="session" if state.session else "agent",
        turn=state.session.turn if state.session else 0,
    )


def team_result(team: Team, end: End) -> RunResult:
    """The result of a swarm or graph, with what each node gave: whatever ended it."""
    unmet = graph.unmet(team.graph, team.spec) if team.graph and isinstance(team.spec, GraphSpec) else {}
    return RunResult(
        agent=team.spec.name,
        output=end.output,
        stop_reason=end.stop_reason,
        steps=team.steps,
        tool_calls=team.tool_calls,
        usage=team.usage,
        cost_microusd=cost_of(team),
        spec_hash=team.spec.hash,
        error=end.failure,
        nodes=list(team.results),
        shared_context=dict(team.swarm.shared_context) if team.swarm else {},
        unmet=unmet,
    )


def team_status(team: Team, status: Status) -> RunStatus:
    """Where a swarm or graph is."""
    return RunStatus(
        agent=team.spec.name,
        kind=team.spec.kind,
        status=status,
        doing=team_doing(team, status),
        step=team.steps,
        tool_calls=team.tool_calls,
        usage=team.usage,
        cost_microusd=cost_of(team),
        waiting=waiting_of(team),
        nodes=nodes_of(team),
        failure=team.end.failure if team.end else None,
        stop_reason=team.end.stop_reason if team.end else None,
        spec_hash=team.spec.hash,
        shared_context=dict(team.swarm.shared_context) if team.swarm else {},
    )


def nodes_of(team: Team) -> list[NodeStatus]:
    """Runs of nodes, without what they gave, in order of their start; of many, the newest."""
    plain = [NodeStatus(**one.model_dump(exclude={"output"})) for one in team.results[-MOST_NODES:]]
    return sorted([*plain, *team.running], key=_began)


def _began(node: NodeStatus) -> float:
    return node.started_at.timestamp() if node.started_at else 0.0


def team_doing(team: Team, status: Status) -> str:
    """What a team does, in one line for people."""
    words = _WORDS[status]
    if status == "failed" and team.end is not None and team.end.failure is not None:
        return f"{words} ({team.end.failure.kind}: {team.end.failure.message})"
    if status == "completed" and team.end is not None:
        return f"{words} ({team.end.stop_reason})"
    running = ", ".join(one.key for one in team.running)
    if status == "acting":
        return f"running {running}" if running else "choosing who is next"
    return f"{words} ({running})" if running else words


def _child_status(state: State, child: Child) -> NodeStatus:
    kinds: dict[str, NodeKind] = {member.name: member.kind for member in state.members}
    kind = kinds.get(child.name, "agent")
    return NodeStatus(key=child.key, node=child.name, kind=kind, run_id=child.run_id)


def starting_report(agent: str, status: Status, held_up: str = "") -> RunStatus:
    """Where a run is whose agent no worker has resolved yet, or never will; `held_up`: what is in the way."""
    doing = "starting" if status == "thinking" else f"{status} before it began"
    if held_up and status == "thinking":
        doing = f"{doing}: {held_up}; it tries again"
    return RunStatus(agent=agent, status=status, doing=doing)


def doing(state: State, status: Status) -> str:
    """What the run does or waits for, in one line for people."""
    words = _WORDS[status]
    if status == "parked" and state.parked is not None:
        return _parked(words, state.parked)
    if status == "failed" and state.end is not None and state.end.failure is not None:
        return f"{words} ({state.end.failure.kind}: {state.end.failure.message})"
    if status == "completed" and state.end is not None:
        return f"{words} ({state.end.stop_reason})"
    open_calls = [signature(call.call) for call in state.calls if call.state != "done"]
    below = [one.path[0] for one in waiting_below(state.tree)] if not open_calls else []
    named = open_calls or below
    return f"{words}: {', '.join(named)}" if named else words


def _parked(words: str, failure: Failure) -> str:
    """A parked run, and whether anybody must do something."""
    if failure.resumes_at is not None:
        words = f"parked: tries again at {failure.resumes_at:%H:%M:%S} UTC, or when it is resumed"
    return f"{words} ({failure.kind}: {failure.message})"


def waiting_for(call: Call, run_id: str = "") -> Approval | Question:
    """What a held call wants of a person."""
    asked = call.call
    if call.kind == "person":
        text = str(asked.arguments.get("question", ""))
        return Question(call_id=asked.id, text=text, since=call.since, run_id=run_id)
    return Approval(
        run_id=run_id,
        call_id=asked.id,
        tool=asked.name,
        arguments=asked.arguments,
        digest=approval_digest(asked),
        since=call.since,
    )


def _call_status(call: Call) -> CallStatus:
    result = call.result
    said = "" if result is None else "".join(p.text for p in result.content if isinstance(p, Text))
    return CallStatus(
        call_id=call.call.id,
        tool=call.call.name,
        arguments=call.call.arguments,
        state=_SHOWN[call.state],
        is_error=result.is_error if result else False,
        summary=_short(said, 200),
    )


def signature(call: ToolCall, most: int = 100) -> str:
    """`search(query="...")`, in at most so many characters."""
    return called(call.name, call.arguments, most)


def called(name: str, arguments: Mapping[str, object], most: int) -> str:
    """As `signature`, of a call that is only known by name and arguments."""
    given = ", ".join(f"{argument}={_plain(value)}" for argument, value in arguments.items())
    return _short(f"{name}({given})", most)


def _plain(value: object) -> str:
    """On one line, whatever is in it: a person decides by what this shows."""
    text = f'"{value}"' if isinstance(value, str) else str(value)
    return " ".join(text.split())


def _short(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def dollars(microusd: int | None) -> str:
    """An amount for people; says so when it is not known."""
    return "cost unknown" if microusd is None else f"${microusd / 1_000_000:.4f}"


def details(state: State | Team) -> str:
    """The run's page in the Temporal UI: Markdown, newest state only, no history."""
    if isinstance(state, Team):
        return team_details(state)
    status = status_of(state)
    spent = f"{state.usage.total_tokens} tokens, {dollars(cost_of(state))}"
    model = state.spec.models[state.model].config.name
    lines = [
        f"**{status}** · {doing(state, status)}",
        "",
        f"- {_turn(state)}step {state.step}, {state.tool_calls} tool calls, {spent}",
        f"- agent `{state.spec.name}`, model `{model}`, spec `{state.spec.hash[:12]}`",
    ]
    for call in state.calls:
        if call.state == "asking":
            lines.append(f"- **waits for a person**: `{call.call.id}` {_literal(signature(call.call, 300))}")
            lines.append(f"  - {_how_to(call)}")
    lines += _people_below(state)
    if state.tree.children:
        lines.append(f"- runs below: {', '.join(f'`{one.key}`' for one in state.tree.children)}")
    if state.plan:
        lines += ["", "**Plan**", "", plan_checklist(state.plan)]
    return "\n".join(lines)


def _turn(state: State) -> str:
    if state.session is None:
        return ""
    queued = f" ({len(state.session.queue)} more messages wait)" if state.session.queue else ""
    return f"turn {state.session.turn}{queued}, "


def team_details(team: Team) -> str:
    """The page of a swarm or graph: what runs, what has run, what the agents told each other."""
    status = status_of(team)
    spent = f"{team.usage.total_tokens} tokens, {dollars(cost_of(team))}"
    lines = [
        f"**{status}** · {team_doing(team, status)}",
        "",
        f"- {team.steps} steps, {team.tool_calls} tool calls, {spent}",
        f"- {team.spec.kind} `{team.spec.name}`, spec `{team.spec.hash[:12]}`",
        *_people_below(team),
        "",
        "| run | state | steps | cost |",
        "| --- | --- | --- | --- |",
    ]
    for node in nodes_of(team)[-MOST_SHOWN:]:
        reason = f" ({node.stop_reason})" if node.stop_reason not in (None, "end_turn") else ""
        cost = dollars(node.cost_microusd) if node.ended_at else ""
        lines.append(f"| `{node.key}` | {node.state}{reason} | {node.steps or ''} | {cost} |")
    if team.swarm is not None and team.swarm.shared_context:
        told = json.dumps(team.swarm.shared_context, ensure_ascii=False, indent=1)
        lines += ["", "**Shared context**", "", "```json", _short(told, 4000), "```"]
    return "\n".join(lines)


def _people_below(state: State | Team) -> list[str]:
    lines: list[str] = []
    for one in waiting_below(state.tree):
        if isinstance(one, Parked):
            why = _literal(_short(f"{one.failure.kind}: {one.failure.message}", 300))
            lines.append(f"- **parked**: {' / '.join(one.path)} {why}")
            lines.append("  - mend the cause, then send the signal `resume`")
            continue
        what = _short(one.text, 300) if isinstance(one, Question) else called(one.tool, one.arguments, 300)
        lines.append(f"- **waits for a person**: {' / '.join(one.path)} `{one.call_id}` {_literal(what)}")
        call = f'"run_id": "{one.run_id}", '
        if isinstance(one, Question):
            lines.append(f'  - answer with the update `send`: `{{{call}"text": "..."}}`')
        else:
            lines.append(
                f"  - allow or deny with the update `{RESOLVE_APPROVAL}`: "
                f'`{{{call}"call_id": "{one.call_id}", "allow": true}}`'
            )
    return lines


def _literal(text: str) -> str:
    return f"`{text.replace('`', chr(39))}`"


def _how_to(call: Call) -> str:
    if call.kind == "person":
        return "answer with the update `send`, a JSON string"
    return (
        f"allow or deny with the update `{RESOLVE_APPROVAL}`: "
        f'`{{"call_id": "{call.call.id}", "allow": true, "by": "you"}}`'
    )
