"""Scheduler of a swarm: which agent has the task, and its prompt.

Theory of operation
1. One agent has the task at any time. Its run is either to be started (`running` is None) or pending.
2. `begin` gives the task to the entry agent; only a handoff gives it to another. Any other end of a
   run is the end of the swarm, written into `end` by `record_end`; `over` then only reports it.
3. What bars a handoff is decided once, when the run that might make it starts: its peers say so.
   The same rule is asked again when the handoff arrives, so no result can pass a limit.
4. A run counts when it has started, a handoff when it has arrived. A count never goes down.
5. An agent that gets the task again remembers its own earlier visits, or all of them: the newest such run has what
   was before it in its transcript. The new run fetches that transcript when it begins.
6. Everything needed to go on is in the progress, save the spec, which the run pins anyway.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Final, cast

from pydantic import JsonValue, ValidationError

from perdure.messages import Part, Text
from perdure.model import canonical_json
from perdure.scheduling import Memory, Notes, Over, Start
from perdure.wire.results import Failure, NodeResult, StopReason
from perdure.wire.spec import SwarmSpec
from perdure.wire.tree import Handoff, Peer

_MOST_REPEATED_CHARS: Final = 32 * 1024
"""Longest request that each visit's prompt repeats as a whole."""


@dataclass(frozen=True, kw_only=True)
class SwarmProgress:
    """Everything that a swarm remembers of its course. See the rules above."""

    task: str | list[Part]
    descriptions: dict[str, str]
    """Description of each agent."""
    turn: str
    """Agent that has the task, or had it last."""
    running: str | None = None
    """Key of the pending run."""
    sender: str | None = None
    """Agent that made the newest handoff."""
    message: str = ""
    """Message of that handoff."""
    visits: tuple[str, ...] = ()
    """Agents in the order in which their runs started."""
    handoffs: int = 0
    shared_context: dict[str, dict[str, JsonValue]] = field(default_factory=dict[str, dict[str, JsonValue]])
    """Values that each agent gave with its handoffs."""
    newest: object = ""
    """Newest output that was not empty; of a handoff, its message."""
    end: Over | None = None


@dataclass(frozen=True)
class SwarmScheduler:
    """Scheduler of one swarm."""

    spec: SwarmSpec
    progress_type: ClassVar[Any] = SwarmProgress
    runs_alone: ClassVar[bool] = True

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> SwarmProgress:
        """Return the progress of a swarm that has just been given its task."""
        known = {name: descriptions.get(name, "") for name in self.spec.agents}
        return SwarmProgress(task=task, descriptions=known, turn=self.spec.entry)

    def startable(self, progress: SwarmProgress) -> tuple[Start, ...]:
        """Return the run to start now, if there is one."""
        if progress.end is not None or progress.running is not None:
            return ()
        peers = _peers(progress, self.spec)
        start = Start(
            key=f"{progress.turn}-{progress.visits.count(progress.turn) + 1}",
            node=progress.turn,
            kind="agent",
            member=progress.turn,
            prompt=_prompt(progress, peers),
            timeout=self.spec.limits.node_timeout,
            peers=peers,
            memory=_memory(progress, self.spec, peers),
        )
        return (start,)

    def record_start(self, progress: SwarmProgress, starts: Sequence[Start]) -> SwarmProgress:
        """Return the progress once these runs are pending."""
        for start in starts:
            progress = replace(
                progress, running=start.key, turn=start.node, visits=(*progress.visits, start.node)
            )
        return progress

    def record_end(self, progress: SwarmProgress, result: NodeResult) -> SwarmProgress:
        """Return the progress after a run ended. A result that the swarm does not wait for changes nothing."""
        if progress.running is None or result.key != progress.running:
            return progress
        progress = replace(progress, running=None)
        # A run that failed after it had asked for a handoff hands nothing over.
        if result.stop_reason == "handoff" and result.state not in ("failed", "cancelled"):
            return _hand_over(progress, self.spec, result.output)
        progress = _keep_output(progress, result.output)
        return replace(progress, end=_end_of(progress, result))

    def restart(self, progress: SwarmProgress, start: Start) -> Start:
        """Return the start of the pending run with the peers that it may hand off to by now."""
        before = replace(progress, visits=progress.visits[:-1])
        return replace(start, peers=_peers(before, self.spec))

    def over(self, progress: SwarmProgress) -> Over | None:
        """Return the end, or None while the swarm goes on."""
        return progress.end

    def partial(self, progress: SwarmProgress) -> Any:
        """Return the newest answer or handoff message; an empty text when there is none."""
        return progress.newest

    def notes(self, progress: SwarmProgress) -> Notes:
        """Return the shared context."""
        return Notes(shared_context=dict(progress.shared_context))


def _keep_output(progress: SwarmProgress, output: Any) -> SwarmProgress:
    empty = output is None or (isinstance(output, str) and not output.strip())
    return progress if empty else replace(progress, newest=output)


def _end_of(progress: SwarmProgress, result: NodeResult) -> Over:
    """Return the end that a run brings which did not hand off."""
    if result.state == "failed":
        error = result.error or Failure(kind="bug", message="it failed and does not say why")
        named = error.model_copy(update={"message": f"agent {progress.turn!r}: {error.message}"})
        return Over(stop_reason="error", output=progress.newest, failure=named)
    reason = result.stop_reason or "end_turn"
    if result.state == "cancelled" and reason in ("end_turn", "handoff"):
        reason = "cancelled"
    # An answer is an answer, even an empty one; what a limit cut short may have nothing to show.
    return Over(stop_reason=reason, output=result.output if reason == "end_turn" else progress.newest)


def _hand_over(progress: SwarmProgress, spec: SwarmSpec, output: Any) -> SwarmProgress:
    try:
        handoff = Handoff.model_validate(output)
    except ValidationError:
        return _fail(progress, f"agent {progress.turn!r} handed off without saying to whom")
    progress = _keep_output(progress, handoff.message)
    target = handoff.agent_name
    if target == progress.turn or target not in spec.agents:
        return _fail(
            progress, f"agent {progress.turn!r} handed off to {target!r}, which is no other agent of it"
        )
    # Rule 3: asked again, so that no result can pass a limit.
    barred = _bar_on(progress, spec, progress.visits, target)
    if barred is not None:
        return replace(progress, end=Over(stop_reason=barred, output=progress.newest))
    return replace(
        progress,
        turn=target,
        sender=progress.turn,
        message=handoff.message,
        handoffs=progress.handoffs + 1,
        shared_context=_with_shared(progress, handoff),
    )


def _fail(progress: SwarmProgress, message: str) -> SwarmProgress:
    """Return the progress of a swarm that ends by a bug: each run gets the agents that it may hand off to."""
    failure = Failure(kind="bug", message=message)
    return replace(progress, end=Over(stop_reason="error", output=progress.newest, failure=failure))


def _with_shared(progress: SwarmProgress, handoff: Handoff) -> dict[str, dict[str, JsonValue]]:
    if not handoff.context:
        return progress.shared_context
    values = cast("dict[str, JsonValue]", handoff.context)  # it has come as JSON
    return {
        **progress.shared_context,
        progress.turn: {**progress.shared_context.get(progress.turn, {}), **values},
    }


def _peers(progress: SwarmProgress, spec: SwarmSpec) -> tuple[Peer, ...]:
    """Return the agents that the starting run may hand off to, each with what bars it."""
    visits = (*progress.visits, progress.turn)
    return tuple(
        Peer(name=name, description=progress.descriptions[name], barred=_bar_on(progress, spec, visits, name))
        for name in spec.agents
        if name != progress.turn
    )


def _bar_on(
    progress: SwarmProgress, spec: SwarmSpec, visits: tuple[str, ...], target: str
) -> StopReason | None:
    """Return the limit that a handoff from the last of `visits` to `target` would pass, or None."""
    limits = spec.limits
    if progress.handoffs >= limits.max_handoffs:
        return "max_handoffs"
    if len(visits) >= limits.max_iterations:
        return "max_iterations"
    # Agents that pass the task back and forth: too few different names among the latest visits.
    window = limits.repetitive_handoff_detection_window
    latest = (*visits, target)[-window:]
    if 0 < window <= len(latest) and len({*latest}) < limits.repetitive_handoff_min_unique_agents:
        return "repetitive_handoff"
    return None


def _prompt(progress: SwarmProgress, peers: tuple[Peer, ...]) -> str | list[Part]:
    """Return the agent's prompt, in the order that users of Strands know. Without peers it is the bare task."""
    if not peers:
        return progress.task
    text = "\n\n".join([*_context_blocks(progress), _handoff_help(peers)])
    if isinstance(progress.task, str):
        return text
    # Pictures and documents come first; the task's own text is in `text` already.
    attachments = [part for part in progress.task if not isinstance(part, Text)]
    return [*attachments, Text(text=text)] if attachments else text


def _memory(progress: SwarmProgress, spec: SwarmSpec, peers: tuple[Peer, ...]) -> Memory | None:
    """Return the earlier visit that the starting run remembers, or None."""
    known = progress.visits if spec.memory == "shared" else (progress.turn,)
    remembered = [at for at, name in enumerate(progress.visits) if name in known]
    # The newest of these visits has remembered those before it.
    if spec.memory == "none" or not remembered:
        return None
    at = remembered[-1]
    name = progress.visits[at]
    key = f"{name}-{progress.visits[: at + 1].count(name)}"
    return Memory(key=key, visit=at + 1, prompt=_prompt_again(progress, spec, peers, since=at + 1))


def _prompt_again(progress: SwarmProgress, spec: SwarmSpec, peers: tuple[Peer, ...], *, since: int) -> str:
    """Return the prompt of an agent that remembers the visits before `since`.

    What it remembers may leave its window, the prompt stays: so the request stands here too, and whom it can hand to.
    """
    blocks = [
        f"Handoff Message from {progress.sender}: {progress.message}",
        f"User Request: {_repeated(_task_text(progress.task))}",
    ]
    if spec.memory == "own":
        visitors = progress.visits[since:]
        blocks.append(f"Agents who worked on this since your last turn: {' → '.join(visitors)}")
        blocks += _shared_block(
            {name: progress.shared_context.get(name, {}) for name in dict.fromkeys(visitors)}
        )
    return "\n\n".join([*blocks, _handoff_help(peers)])


def _repeated(task: str) -> str:
    """Return the task's text, or the beginning of one that is too long to stand in each visit's prompt."""
    if len(task) <= _MOST_REPEATED_CHARS:
        return task
    return f"{task[:_MOST_REPEATED_CHARS]}\n(The rest is left out here: it stands in the prompt of the first visit.)"


def _shared_block(shared: Mapping[str, dict[str, JsonValue]]) -> list[str]:
    known = [f"• {name}: {canonical_json(values).decode()}" for name, values in shared.items() if values]
    return ["\n".join(["Shared knowledge from previous agents:", *known])] if known else []


def _context_blocks(progress: SwarmProgress) -> list[str]:
    blocks = [f"User Request: {_task_text(progress.task)}"]
    if progress.sender is not None:
        blocks.insert(0, f"Handoff Message from {progress.sender}: {progress.message}")
    if progress.visits:
        blocks.append(f"Previous agents who worked on this: {' → '.join(progress.visits)}")
    return [*blocks, *_shared_block(progress.shared_context)]


def _task_text(task: str | list[Part]) -> str:
    if isinstance(task, str):
        return task
    words = "\n".join(part.text for part in task if isinstance(part, Text))
    return words or "see what is attached."


def _handoff_help(peers: tuple[Peer, ...]) -> str:
    # An agent that cannot be handed to is not listed: trying it would cost the run its turn.
    free = [peer for peer in peers if peer.barred is None]
    if not free:
        return "Nobody else can take over from here: finish the task yourself and give the final answer."
    listed = [
        f"Agent name: {peer.name}." + (f" Agent description: {peer.description}" if peer.description else "")
        for peer in free
    ]
    closing = (
        "If another agent should go on, call handoff_to_agent: your turn ends with it. "
        "If you don't hand off to another agent, your answer is final and the task is complete."
    )
    return "\n".join(["Other agents available for collaboration:", *listed, "", closing])
