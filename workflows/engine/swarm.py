"""The scheduler of a swarm: whose turn it is, and what it is told. Pure.

Theory of operation
1. One agent has the task at any time. Its run is either to be started (`running` is None) or in flight.
2. `begin` gives the task to the entry agent; only a handoff gives it to another. Any other end of a
   run is the end of the swarm, written into `end` by `ended`; `over` then only reports it.
3. What bars a handoff is decided once, when the run that might make it starts: its peers say so.
   The same rule is asked again when the handoff arrives, so no result can pass a limit.
4. A run counts when it has started, a handoff when it has arrived. A count never goes down.
5. Everything needed to go on is in the plan, save the spec, which the run pins anyway.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from pydantic import JsonValue, ValidationError

from perdure.messages import Part, Text
from perdure.model import canonical_json
from perdure.wire.results import Failure, NodeResult, StopReason
from perdure.wire.spec import SwarmSpec
from perdure.wire.tree import Handoff, Peer

from .scheduler import Over, Start


@dataclass(frozen=True, kw_only=True)
class SwarmPlan:
    """Everything a swarm knows of its course. See the rules above."""

    task: str | list[Part]
    descriptions: dict[str, str]
    """What each agent is good for."""
    turn: str
    """Who has the task, or had it last."""
    running: str | None = None
    """Key of the run in flight."""
    sender: str | None = None
    """Who handed the task to the one who has it."""
    message: str = ""
    """What was said with that handoff."""
    visits: tuple[str, ...] = ()
    """Agents in the order in which their runs started."""
    handoffs: int = 0
    shared_context: dict[str, dict[str, JsonValue]] = field(default_factory=dict[str, dict[str, JsonValue]])
    """What each agent gave along with its handoffs."""
    said: object = ""
    """The newest output that was not empty; of a handoff, its message."""
    end: Over | None = None


def begin(spec: SwarmSpec, descriptions: Mapping[str, str], task: str | list[Part]) -> SwarmPlan:
    """The plan of a swarm that has just been given its task."""
    known = {name: descriptions.get(name, "") for name in spec.agents}
    return SwarmPlan(task=task, descriptions=known, turn=spec.entry)


def startable(plan: SwarmPlan, spec: SwarmSpec) -> tuple[Start, ...]:
    """The run to start now, if there is one."""
    if plan.end is not None or plan.running is not None:
        return ()
    peers = _peers(plan, spec)
    start = Start(
        key=f"{plan.turn}-{plan.visits.count(plan.turn) + 1}",
        node=plan.turn,
        kind="agent",
        member=plan.turn,
        prompt=_prompt(plan, peers),
        timeout=spec.limits.node_timeout,
        peers=peers,
    )
    return (start,)


def started(plan: SwarmPlan, starts: Sequence[Start]) -> SwarmPlan:
    """The plan once these are under way."""
    for start in starts:
        plan = replace(plan, running=start.key, turn=start.node, visits=(*plan.visits, start.node))
    return plan


def ended(plan: SwarmPlan, spec: SwarmSpec, result: NodeResult) -> SwarmPlan:
    """The plan once that run has ended. A result that nobody waits for changes nothing."""
    if plan.running is None or result.key != plan.running:
        return plan
    plan = replace(plan, running=None)
    if result.stop_reason == "handoff" and result.state not in ("failed", "cancelled"):
        return _handed(plan, spec, result.output)
    plan = _heard(plan, result.output)
    return replace(plan, end=_last(plan, result))


def over(plan: SwarmPlan, spec: SwarmSpec) -> Over | None:
    """How the swarm ends, or None while it goes on."""
    return plan.end


def partial(plan: SwarmPlan) -> Any:
    """The best there is when the swarm is stopped from outside: what was last answered or handed on.

    Empty text when nobody has said anything yet.
    """
    return plan.said


def _heard(plan: SwarmPlan, output: Any) -> SwarmPlan:
    empty = output is None or (isinstance(output, str) and not output.strip())
    return plan if empty else replace(plan, said=output)


def _last(plan: SwarmPlan, result: NodeResult) -> Over:
    """The end that a run brings which did not hand off."""
    if result.state == "failed":
        error = result.error or Failure(kind="bug", message="it failed and does not say why")
        named = error.model_copy(update={"message": f"agent {plan.turn!r}: {error.message}"})
        return Over(stop_reason="error", output=partial(plan), failure=named)
    reason = result.stop_reason or "end_turn"
    if result.state == "cancelled" and reason in ("end_turn", "handoff"):
        reason = "cancelled"
    # An answer is an answer, even an empty one; what a limit cut short may have nothing to show.
    return Over(stop_reason=reason, output=result.output if reason == "end_turn" else partial(plan))


def _handed(plan: SwarmPlan, spec: SwarmSpec, output: Any) -> SwarmPlan:
    try:
        handoff = Handoff.model_validate(output)
    except ValidationError:
        return _astray(plan, f"agent {plan.turn!r} handed off without saying to whom")
    plan = _heard(plan, handoff.message)
    target = handoff.agent_name
    if target == plan.turn or target not in spec.agents:
        return _astray(plan, f"agent {plan.turn!r} handed off to {target!r}, which is no other agent of it")
    barred = _barred(plan, spec, plan.visits, target)
    if barred is not None:
        return replace(plan, end=Over(stop_reason=barred, output=partial(plan)))
    return replace(
        plan,
        turn=target,
        sender=plan.turn,
        message=handoff.message,
        handoffs=plan.handoffs + 1,
        shared_context=_shared(plan, handoff),
    )


def _astray(plan: SwarmPlan, message: str) -> SwarmPlan:
    """No run hands off like this: it was told whom it may hand off to."""
    failure = Failure(kind="bug", message=message)
    return replace(plan, end=Over(stop_reason="error", output=partial(plan), failure=failure))


def _shared(plan: SwarmPlan, handoff: Handoff) -> dict[str, dict[str, JsonValue]]:
    if not handoff.context:
        return plan.shared_context
    told = cast("dict[str, JsonValue]", handoff.context)  # it has come as JSON
    return {**plan.shared_context, plan.turn: {**plan.shared_context.get(plan.turn, {}), **told}}


def _peers(plan: SwarmPlan, spec: SwarmSpec) -> tuple[Peer, ...]:
    """Whom the run about to start may hand off to, and why not."""
    visits = (*plan.visits, plan.turn)
    return tuple(
        Peer(name=name, description=plan.descriptions[name], barred=_barred(plan, spec, visits, name))
        for name in spec.agents
        if name != plan.turn
    )


def _barred(plan: SwarmPlan, spec: SwarmSpec, visits: tuple[str, ...], target: str) -> StopReason | None:
    """What a handoff from the last of `visits` to `target` would break."""
    limits = spec.limits
    if plan.handoffs >= limits.max_handoffs:
        return "max_handoffs"
    if len(visits) >= limits.max_iterations:
        return "max_iterations"
    window = limits.repetitive_handoff_detection_window
    latest = (*visits, target)[-window:]
    if 0 < window <= len(latest) and len({*latest}) < limits.repetitive_handoff_min_unique_agents:
        return "repetitive_handoff"
    return None


def _prompt(plan: SwarmPlan, peers: tuple[Peer, ...]) -> str | list[Part]:
    """What the agent is told, in the order users of Strands know. Alone, it gets the bare task."""
    if not peers:
        return plan.task
    text = "\n\n".join([*_so_far(plan), _how_to_go_on(peers)])
    if isinstance(plan.task, str):
        return text
    shown = [part for part in plan.task if not isinstance(part, Text)]
    return [*shown, Text(text=text)] if shown else text


def _so_far(plan: SwarmPlan) -> list[str]:
    blocks = [f"User Request: {_request(plan.task)}"]
    if plan.sender is not None:
        blocks.insert(0, f"Handoff Message from {plan.sender}: {plan.message}")
    if plan.visits:
        blocks.append(f"Previous agents who worked on this: {' → '.join(plan.visits)}")
    if plan.shared_context:
        known = [f"• {name}: {canonical_json(told).decode()}" for name, told in plan.shared_context.items()]
        blocks.append("\n".join(["Shared knowledge from previous agents:", *known]))
    return blocks


def _request(task: str | list[Part]) -> str:
    if isinstance(task, str):
        return task
    words = "\n".join(part.text for part in task if isinstance(part, Text))
    return words or "see what is attached."


def _how_to_go_on(peers: tuple[Peer, ...]) -> str:
    # Whom it could only hand off to in vain it is not told about: that would cost it its turn.
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
