"""Reports of a team's run: status, result, page in the Temporal UI."""

import json
from typing import Final

from perdure.scheduling import Notes
from perdure.wire.results import NodeStatus, RunResult, RunStatus, Status

from .account import bounded_calls
from .handovers import handed_on_by_team, left_by_team
from .report import (
    STATUS_WORDS,
    cost_of,
    dollars,
    end_words,
    extension_lines,
    people_below,
    shorten,
    spent_words,
    status_of,
    turn_words,
    waiting_of,
)
from .state import End
from .team_state import TeamState

MOST_NODES: Final = 200
"""Most ended runs of nodes that a status holds."""
MOST_SHOWN: Final = 40
"""Most runs of nodes that the UI page shows."""


def team_status(team: TeamState, notes: Notes) -> RunStatus:
    """Return the status of a team."""
    status = status_of(team)
    return RunStatus(
        agent=team.spec.name,
        # Lists and watchers treat every session alike, whatever runs inside.
        kind="session" if team.session else team.spec.kind,
        spec_kind=team.spec.kind,
        status=status,
        doing=_doing(team, status),
        step=team.ledger.steps,
        tool_calls=team.ledger.tool_calls,
        messages=len(team.messages),
        usage=team.ledger.usage,
        cost_microusd=cost_of(team),
        waiting=waiting_of(team),
        nodes=_nodes_of(team),
        failure=team.end.failure if team.end else None,
        stop_reason=team.end.stop_reason if team.end else None,
        spec_hash=team.spec.hash,
        shared_context=notes.shared_context,
        extensions=list(team.past.extensions),
        queued=team.unread_count,
        turn=team.session.turn if team.session else 0,
    )


def team_result(team: TeamState, end: End, notes: Notes) -> RunResult:
    """Return the result of a team, with the result of each node, whatever ended it."""
    return RunResult(
        agent=team.spec.name,
        output=end.output,
        stop_reason=end.stop_reason,
        steps=team.ledger.steps,
        tool_calls=team.ledger.tool_calls,
        usage=team.ledger.usage,
        cost_microusd=cost_of(team),
        spec_hash=team.spec.hash,
        error=end.failure,
        # All of them, with outputs. The status has fewer, because it is read often.
        nodes=list(team.results),
        shared_context=notes.shared_context,
        unmet=notes.unmet,
        per_tool=bounded_calls(team),
        missing=left_by_team(team),
        handed_on=handed_on_by_team(team),
    )


def team_details(team: TeamState, notes: Notes) -> str:
    """Return the team's page in the Temporal UI: running and ended nodes, and the shared context."""
    status = status_of(team)
    ledger = team.ledger
    counts = f"{ledger.steps} steps, {ledger.tool_calls} tool calls, {spent_words(team)}"
    lines = [
        f"**{status}** · {_doing(team, status)}",
        "",
        f"- {turn_words(team)}{counts}",
        f"- {team.spec.kind} `{team.spec.name}`, spec `{team.spec.hash[:12]}`",
        # First, because it is the only part that asks somebody to act.
        *people_below(team),
        *extension_lines(team),
        "",
        "| run | state | steps | cost |",
        "| --- | --- | --- | --- |",
    ]
    for node in _nodes_of(team)[-MOST_SHOWN:]:
        reason = f" ({node.stop_reason})" if node.stop_reason not in (None, "end_turn") else ""
        cost = dollars(node.cost_microusd) if node.ended_at else ""
        lines.append(f"| `{node.key}` | {node.state}{reason} | {node.steps or ''} | {cost} |")
    if notes.shared_context:
        shared = json.dumps(notes.shared_context, ensure_ascii=False, indent=1)
        lines += ["", "**Shared context**", "", "```json", shorten(shared, 4000), "```"]
    return "\n".join(lines)


def _nodes_of(team: TeamState) -> list[NodeStatus]:
    """Return runs of nodes without their outputs, in order of their start; of many, the newest."""
    # Outputs may be large, and a status is a query's answer with a bound on its bytes.
    plain = [NodeStatus(**node.model_dump(exclude={"output"})) for node in team.results[-MOST_NODES:]]
    return sorted([*plain, *team.running], key=_start_time)


def _start_time(node: NodeStatus) -> float:
    return node.started_at.timestamp() if node.started_at else 0.0


def _doing(team: TeamState, status: Status) -> str:
    """Return what a team does, in one line for people."""
    words = STATUS_WORDS[status]
    ended = end_words(team, status)
    if ended is not None:
        return ended
    running = ", ".join(node.key for node in team.running)
    if status == "acting":
        return f"running {running}" if running else "choosing who is next"
    return f"{words} ({running})" if running else words
