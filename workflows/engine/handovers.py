"""Handovers: what an ended run of a team leaves to the run that takes over from it.

Rules
1. A run that ends leaves the messages, and people's answers, that it has not read. One that hands over also leaves
   what it has done beside the handoff: nobody has seen those results, and the calls are not made again.
2. The agent that was handed to takes over, or else another attempt of the same node. It reads the messages after its
   prompt, as messages of their own.
3. Where nobody takes over, the messages and the calls are named in the team's result. In a session the next turn
   reads the messages.
4. A write that a limit has refused is told to the next agent. It stays named, as nobody need ever make it.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from perdure.messages import Message, Part, ResultPart, Text, ToolCall, ToolResult
from perdure.scheduling import Start
from perdure.wire.names import HANDOFF, UPDATE_PLAN
from perdure.wire.results import HandedOn, NodeResult, RunResult
from perdure.wire.spec import AgentSpec

from .leftovers import (
    ANSWER_NOT_READ,
    calls_by_id,
    cut_lines,
    refused_lines,
    refused_writes,
    unread_answers,
    unread_lines,
    unread_messages,
)
from .report import shorten, signature
from .state import AgentState, End, RunState
from .team_state import Handover, TeamState

_PREVIEW_BYTES: Final = 16 * 1024
_MOST_REFUSED: Final = 20
"""Newest refusals that an agent is told of."""


# -- the run that ends


def handed_on_by(state: AgentState, end: End) -> HandedOn | None:
    """Return what an agent's run leaves to the run that takes over; None for a root, or when it leaves nothing."""
    if state.tree.lineage is None:
        return None
    hands_over = end.stop_reason == "handoff"
    # Beside a handoff, an answer is one of the results that are told.
    messages = [*([] if hands_over else unread_answers(state)), *unread_messages(state)]
    beside, refused = (_calls_beside(state), _refusals(state)) if hands_over else ([], [])
    not_run = cut_lines(refused_lines(state)) if hands_over else []
    if not (messages or beside or refused or not_run):
        return None
    media: list[ResultPart] = [
        part for _, result in beside for part in result.content if not isinstance(part, Text)
    ]
    return HandedOn(
        messages=messages,
        done="\n\n".join(_describe_result(call, result) for call, result in beside),
        refused=refused,
        not_run=not_run,
        media=media,
        spilled=any(result.spilled for _, result in beside)
        or (state.transcript.spilled and any(message.answer_of for message in messages)),
    )


def _calls_beside(state: AgentState) -> list[tuple[ToolCall, ToolResult]]:
    """Return the calls beside the handoff, whose results no model has seen. Refused writes are told apart."""
    not_run = {result.call_id for result in refused_writes(state)}
    newest = next(message for message in reversed(state.messages) if message.role == "tool")
    beside = [result for result in newest.tool_results if result.name not in (HANDOFF, UPDATE_PLAN)]
    made = calls_by_id(state)
    return [(made[result.call_id], result) for result in beside if result.call_id not in not_run]


def _refusals(state: AgentState) -> list[str]:
    """Return a line for each call of the run that a person has refused."""
    made = calls_by_id(state)
    return [
        f"{signature(made[result.call_id])}: {shorten(result.text, 500)}"
        for message in state.messages[state.first_message :]
        for result in message.tool_results
        if result.approval is not None and not result.approval.allow
    ][-_MOST_REFUSED:]


def _describe_result(call: ToolCall, result: ToolResult) -> str:
    mark = "failed: " if result.is_error else ""
    return f"{signature(call, 1000)}\n→ {mark}{result.text}"


# -- the team


def record_handover(team: TeamState, result: NodeResult, outcome: RunResult) -> tuple[TeamState, NodeResult]:
    """Return the team that keeps what the ended run leaves, and the run's result without it."""
    target = ""
    if result.stop_reason == "handoff" and result.state == "done" and isinstance(result.output, dict):
        target = str(result.output.get("agent_name", ""))  # pyright: ignore[reportUnknownMemberType, reportUnknownArgumentType]
    if outcome.handed_on is None and not (target and (result.missing or team.refused)):
        return team, result
    left = outcome.handed_on or HandedOn()
    if not target:
        # The messages, answers among them, are named by the handover, as long as no other attempt reads them.
        named = tuple(unread_lines(left.messages))
        missing = [line for line in result.missing if not line.startswith(ANSWER_NOT_READ)]
        kept = [line for line in missing if not line.endswith(named)]
        handover = Handover(key=result.key, target="", left=left, missing=())
        result = result.model_copy(update={"missing": kept})
    else:
        kept = [line for line in result.missing if line in left.not_run]
        gone = tuple(line for line in result.missing if line not in left.not_run)
        handover = Handover(key=result.key, target=target, left=left, missing=gone)
        result = result.model_copy(update={"missing": kept})
    refused = (*team.refused, *left.refused)[-_MOST_REFUSED:]
    return replace(team, handovers=(*team.handovers, handover), refused=refused), result


def _taken_by(handover: Handover, member: str | None, first_key: str) -> bool:
    """Return whether the run of that member, or that attempt after the first of that key, takes over."""
    if handover.target:
        return handover.target == member
    return _is_attempt_of(handover.key, first_key)


def handed_on_to(team: TeamState, member: str | None, first_key: str) -> HandedOn | None:
    """Return all that earlier runs leave to a run that is to start, or None."""
    taken = [handover for handover in team.handovers if _taken_by(handover, member, first_key)]
    refused = [*team.refused] if any(handover.target for handover in taken) else []
    if not taken:
        return None
    return HandedOn(
        refused=refused,
        not_run=[line for handover in taken if handover.target for line in handover.left.not_run],
        messages=[message for handover in taken for message in handover.left.messages],
        done="\n\n".join(handover.left.done for handover in taken if handover.left.done),
        media=[part for handover in taken for part in handover.left.media],
        spilled=any(handover.left.spilled for handover in taken),
    )


def record_takeover(team: TeamState, starts: Sequence[Start]) -> TeamState:
    """Return the team once these runs have started: what they take over is no longer the team's to name."""
    handovers, results = team.handovers, team.results
    for start in starts:
        handovers = tuple(h for h in handovers if not _taken_by(h, start.member, start.retry_of))
        # A run that goes on after an extension has its own messages.
        handovers = tuple(h for h in handovers if h.key != start.key or h.key not in team.cut.origins)
        # Another attempt does the work anew, or goes on with it.
        results = tuple(_without_missing(result, start) for result in results)
    return replace(team, handovers=handovers, results=results)


def _without_missing(result: NodeResult, start: Start) -> NodeResult:
    """Return the result of an earlier attempt of the starting run without what it has left; any other as it is."""
    is_earlier = result.key == start.key or _is_attempt_of(result.key, start.retry_of)
    return result.model_copy(update={"missing": []}) if is_earlier and result.missing else result


def _is_attempt_of(key: str, first_key: str) -> bool:
    """Return whether the key is that of a node's first attempt, or of one after it such as "draft-2.1"."""
    return bool(first_key) and first_key in (key, key.rpartition(".")[0])


def left_by_team(team: TeamState) -> list[str]:
    """Return what the runs of a team's nodes have left undone, and what nobody has taken over."""
    lines = [f"{result.key}: {line}" for result in team.results for line in result.missing]
    turn_is_open = team.session is not None and team.session.turn_is_open
    for handover in team.handovers:
        # In a session the next turn reads the messages.
        unread = [] if turn_is_open else unread_lines(handover.left.messages)
        lines += [f"{handover.key}: {line}" for line in (*handover.missing, *unread)]
    return cut_lines(lines)


def handed_on_by_team(team: TeamState) -> HandedOn | None:
    """Return the messages that a team below another leaves to another attempt of its node."""
    messages: list[Message] = [*team.unread_below]
    return HandedOn(messages=messages) if messages and team.tree.lineage is not None else None


# -- the run that takes over


def preview_bytes(state: RunState, start: Start) -> int:
    """Return the most bytes that the starting run is shown of what was done before it."""
    member = next((member for member in state.members if member.name == start.member), None)
    most = member.result_preview_bytes if isinstance(member, AgentSpec) else _PREVIEW_BYTES
    # Room for a result of the full length, which names its own rest, and for others beside it.
    return 2 * most


def prompt_with_notes(start: Start) -> str | list[Part]:
    """Return the prompt of a starting run, followed by what the run before it has done."""
    left = start.handed_on
    notes = [] if left is None else _notes(left)
    if left is None or not notes:
        return start.prompt
    text = "\n\n".join(notes)
    if isinstance(start.prompt, str) and not left.media:
        return f"{start.prompt}\n\n{text}"
    prompt: list[Part] = [Text(text=start.prompt)] if isinstance(start.prompt, str) else [*start.prompt]
    return [*prompt, Text(text=text), *left.media]


def _notes(left: HandedOn) -> list[str]:
    notes: list[str] = []
    if left.done or left.media:
        notes.append(f"Done beside the handoff; nobody has seen these results yet:\n\n{left.done}")
    if left.refused:
        notes.append("\n".join(["Refused by a person:", *(f"• {line}" for line in left.refused)]))
    if left.not_run:
        newest = left.not_run[-_MOST_REFUSED:]
        notes.append("\n".join(["Not run, because a limit forbade it:", *(f"• {line}" for line in newest)]))
    return notes
