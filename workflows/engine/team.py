"""What a swarm or a graph knows, and what it does next: children run, it only directs them. Pure.

The scheduler (`swarm`, `graph`) says which node is to run and when it is over; what all such runs
share stands here: time, money, people, the end.
"""

from dataclasses import dataclass, replace
from datetime import datetime
from typing import assert_never

from perdure.graph import GraphCode
from perdure.limits import GraphLimits, SwarmLimits
from perdure.messages import Usage
from perdure.model import canonical_json
from perdure.wire.ids import child_run_id
from perdure.wire.requests import RunRequest
from perdure.wire.results import NodeResult, NodeState, NodeStatus, RunResult, StopReason
from perdure.wire.spec import AnySpec, GraphSpec, SwarmSpec
from perdure.wire.tree import Amount

from . import graph, swarm, tree
from .account import limits_of, room, spent
from .amounts import FIELDS, REASONS, bounds_of, least, of
from .budget import Want
from .decide import Answer, Ask, Command, Finish, Recall, StartNodes, Wait
from .fold import Birth, deadline_of
from .joins import GraphPlan
from .scheduler import Over, Start
from .state import (
    Asked,
    ChildAnswered,
    ChildEnded,
    ChildReported,
    End,
    EndAsked,
    Event,
    GraceOver,
    Granted,
    NodesStarted,
    Paused,
    Resumed,
    Told,
)
from .swarm import SwarmPlan
from .tree import Child, Tree

Code = GraphCode
NO_CODE = Code()

MOST_STARTED_BYTES = 1024 * 1024
"""Of prompts and inputs, in one workflow task."""
_NEEDED = Amount(cost_microusd=1, input_tokens=1, output_tokens=1, total_tokens=1)
"""With less than this left, no node is worth starting."""


@dataclass(frozen=True, kw_only=True)
class Team:
    """Everything a swarm or graph knows."""

    request: RunRequest
    spec: SwarmSpec | GraphSpec
    limits: SwarmLimits | GraphLimits
    """Its own, tightened by the request's."""
    started_at: datetime
    deadline_at: datetime | None = None
    id: str = ""
    members: tuple[AnySpec, ...] = ()
    tree: Tree = Tree()  # noqa: RUF009 - a frozen value
    swarm: SwarmPlan | None = None
    graph: GraphPlan | None = None
    running: tuple[NodeStatus, ...] = ()
    results: tuple[NodeResult, ...] = ()

    usage: Usage = Usage()
    cost_microusd: int = 0
    cost_unknown: bool = False
    tool_calls: int = 0
    steps: int = 0

    paused: bool = False
    ending: StopReason | None = None
    end: End | None = None

    @property
    def busy(self) -> bool:
        """Whether anything is in flight."""
        return bool(self.running)


def initial(request: RunRequest, spec: SwarmSpec | GraphSpec, now: datetime, birth: Birth) -> Team:
    """The state of a swarm or graph that begins."""
    limits = spec.limits.tightened_by(request.limits)
    team = Team(
        request=request,
        spec=spec,
        limits=limits,
        started_at=now,
        deadline_at=deadline_of(limits, now, birth.branch),
        id=birth.id,
        members=birth.members,
        tree=tree.rooted(birth.branch),
    )
    match spec:
        case SwarmSpec():
            known = {member.name: member.description for member in birth.members}
            return replace(team, swarm=swarm.begin(spec, known, request.prompt))
        case GraphSpec():
            return replace(team, graph=graph.begin(spec, request.prompt))


# -- what happens


def fold(team: Team, event: Event, code: Code = NO_CODE) -> Team:  # noqa: C901 - one case an event
    """The state after the event. What only concerns an agent's own loop changes nothing."""
    match event:
        case NodesStarted():
            return _started(team, event)
        case ChildEnded():
            return _ended(team, event, code)
        case ChildReported():
            return replace(team, tree=tree.reported(team.tree, event.report))
        case ChildAnswered():
            return replace(team, tree=tree.granted(team.tree, event.key, event.grant.amount))
        case Asked():
            return replace(team, tree=tree.asked(team.tree, event.need, event.wish))
        case Granted():
            return replace(team, tree=tree.answered(team.tree, event.grant))
        case Told():
            return replace(team, tree=tree.told(team.tree, event.waiting, event.returned))
        case Paused():
            return replace(team, paused=True)
        case Resumed():
            return replace(team, paused=False)
        case EndAsked():
            return _end_asked(team, event)
        case GraceOver():
            return _give_up(team, code)
        case _:
            return team


def _started(team: Team, event: NodesStarted) -> Team:
    leased = [start for start in event.starts if start.kind != "function"]
    alone = team.swarm is not None
    lease = tree.lease_for(team.tree, limits_of(team), spent(team), len(leased), alone=alone)
    for start in event.starts:
        run_id = None if start.kind == "function" else child_run_id(team.id, start.key)
        flying = NodeStatus(
            key=start.key, node=start.node, kind=start.kind, run_id=run_id, started_at=event.at
        )
        team = replace(team, running=(*team.running, flying))
        if run_id is not None and start.member is not None:
            child = Child(key=start.key, name=start.member, run_id=run_id, lease=lease)
            team = replace(team, tree=tree.born(team.tree, child))
    if team.swarm is not None:
        return replace(team, swarm=swarm.started(team.swarm, event.starts))
    assert team.graph is not None, "a team is a swarm or a graph"
    return replace(team, graph=graph.started(team.graph, event.starts))


def _ended(team: Team, event: ChildEnded, code: Code) -> Team:
    flying = next((one for one in team.running if one.key == event.key), None)
    if flying is None:
        return team  # given up before it answered
    child = team.tree.child(event.key)
    outcome = tree.outcome_of(child, event.outcome) if child else event.outcome
    result = NodeResult.model_validate(
        {
            **flying.model_dump(),
            "state": _state_of(event),
            "stop_reason": outcome.stop_reason,
            "ended_at": event.at,
            "steps": outcome.steps,
            "tool_calls": outcome.tool_calls,
            "usage": outcome.usage,
            "cost_microusd": outcome.cost_microusd,
            "error": outcome.error,
            "output": outcome.output,
        }
    )
    return _booked(team, result, code)


def _state_of(event: ChildEnded) -> NodeState:
    if event.outcome.stop_reason == "cancelled":
        return "cancelled"
    return "failed" if event.outcome.error is not None and not event.outcome.answered else "done"


def _booked(team: Team, result: NodeResult, code: Code) -> Team:
    team = replace(
        team,
        running=tuple(one for one in team.running if one.key != result.key),
        results=(*team.results, result),
        tree=tree.gone(team.tree, result.key),
        usage=team.usage + result.usage,
        cost_microusd=team.cost_microusd + (result.cost_microusd or 0),
        cost_unknown=team.cost_unknown or result.cost_microusd is None,
        tool_calls=team.tool_calls + result.tool_calls,
        steps=team.steps + result.steps,
    )
    match team.spec:
        case SwarmSpec():
            assert team.swarm is not None, "made with it"
            return replace(team, swarm=swarm.ended(team.swarm, team.spec, result))
        case GraphSpec():
            assert team.graph is not None, "made with it"
            return replace(team, graph=graph.ended(team.graph, team.spec, code, result))
        case _:
            assert_never(team.spec)


def _end_asked(team: Team, event: EndAsked) -> Team:
    if team.end is not None:
        return team
    reason = "cancelled" if event.reason == "cancelled" else team.ending or event.reason
    return replace(team, ending=reason)


def _give_up(team: Team, code: Code) -> Team:
    """Those that did not answer: what they may have used is booked, and the sum says that it is not known."""
    for one in team.running:
        child = team.tree.child(one.key)
        unknown = Usage(estimated=one.run_id is not None)
        unheard = RunResult(agent=one.node, stop_reason="cancelled", usage=unknown, cost_microusd=0)
        outcome = tree.outcome_of(child, unheard) if child else unheard
        result = NodeResult.model_validate(
            {
                **one.model_dump(),
                "state": "cancelled",
                "stop_reason": "cancelled",
                "usage": outcome.usage,
                "cost_microusd": outcome.cost_microusd,
                "tool_calls": outcome.tool_calls,
                "output": outcome.output,
            }
        )
        team = _booked(team, result, code) if team.ending is None else _counted(team, result)
    return team


def _counted(team: Team, result: NodeResult) -> Team:
    return replace(
        team,
        running=tuple(one for one in team.running if one.key != result.key),
        results=(*team.results, result),
        tree=tree.gone(team.tree, result.key),
        usage=team.usage + result.usage,
        cost_microusd=team.cost_microusd + (result.cost_microusd or 0),
        tool_calls=team.tool_calls + result.tool_calls,
    )


# -- what to do


def decide(team: Team, code: Code = NO_CODE) -> Command:
    """The next command."""
    if team.end is not None:
        return Recall() if team.busy else Finish(end=team.end)
    if team.ending is not None:
        return Recall() if team.busy else Finish(end=early_end(team, team.ending))
    over = _over(team, code)
    if over is not None:
        return _ending(team, over)
    return _for_children(team) or _onward(team, code)


def _over(team: Team, code: Code) -> Over | None:
    match team.spec:
        case SwarmSpec():
            assert team.swarm is not None, "made with it"
            return swarm.over(team.swarm, team.spec)
        case GraphSpec():
            assert team.graph is not None, "made with it"
            return graph.over(team.graph, team.spec, code)
        case _:
            assert_never(team.spec)


def _ending(team: Team, over: Over) -> Command:
    if team.busy:
        return Recall() if over.cancel_running else _for_children(team) or Wait()
    reason = over.stop_reason if over.stop_reason != "end_turn" else _limited(team) or "end_turn"
    return Finish(end=End(stop_reason=reason, output=over.output, failure=over.failure))


def _limited(team: Team) -> StopReason | None:
    """The limit of all together that cut a node short: one that the node has not by itself."""
    most = least(limits_of(team), team.tree.lease)
    bounded = [name for name in FIELDS if of(most, name) is not None]
    own = {member.name: bounds_of(member.limits) for member in team.members}
    members = {} if isinstance(team.spec, SwarmSpec) else {n.name: n.member or "" for n in team.spec.nodes}
    for result in team.results:
        limits = own.get(members.get(result.node, result.node), Amount())
        for name in bounded:
            if result.stop_reason == REASONS[name] and of(limits, name) is None:
                return REASONS[name]
    return None


def _for_children(team: Team) -> Command | None:
    if all(child.need is None for child in team.tree.children):
        return None
    found = tree.answers(team.tree, limits_of(team), spent(team), busy=False)
    if found.grants:
        return Answer(grants=found.grants)
    if found.need is not None and found.wish is not None:
        return Ask(want=Want(need=found.need, wish=found.wish))
    return None


def _onward(team: Team, code: Code) -> Command:
    if team.paused or team.tree.asking:
        return Wait()
    starts = startable(team, code)
    if not starts:
        return Wait()
    many, starts = len(starts), _together(team, starts)
    if all(start.kind == "function" for start in starts):
        return StartNodes(starts=starts, more=len(starts) < many)
    return _if_affordable(team, starts, more=len(starts) < many)


def _together(team: Team, starts: tuple[Start, ...]) -> tuple[Start, ...]:
    """As many as one workflow task may start: the server ends a run that sends it too much at once."""
    each = len(canonical_json(team.request.context))
    there = MOST_STARTED_BYTES
    for number, start in enumerate(starts):
        there -= each + len(canonical_json([start.prompt, start.inputs, list(start.history)]))
        if there < 0 and number > 0:
            return starts[:number]
    return starts


def _if_affordable(team: Team, starts: tuple[Start, ...], *, more: bool) -> Command:
    there = room(team)
    short = next((name for name in FIELDS if of(_NEEDED, name) and of(there, name) == 0), None)
    if short is None:
        return StartNodes(starts=starts, more=more)
    if team.busy:
        return Wait()  # those in flight may give something back
    need, parent_could = tree.lacking(team.tree, limits_of(team), spent(team), _NEEDED)
    if need is not None and parent_could:
        return Ask(want=Want(need=need, wish=need))
    return Finish(end=early_end(team, REASONS[short]))


def startable(team: Team, code: Code = NO_CODE) -> tuple[Start, ...]:
    """The nodes to start now."""
    match team.spec:
        case SwarmSpec():
            assert team.swarm is not None, "made with it"
            return swarm.startable(team.swarm, team.spec)
        case GraphSpec():
            assert team.graph is not None, "made with it"
            return graph.startable(team.graph, team.spec, code)
        case _:
            assert_never(team.spec)


def early_end(team: Team, reason: StopReason) -> End:
    """An end from outside, or by a limit: with the best there is."""
    return End(stop_reason=reason, output=partial(team))


def partial(team: Team) -> object:
    """The best there is so far."""
    match team.spec:
        case SwarmSpec():
            assert team.swarm is not None, "made with it"
            last = team.results[-1].output if team.results else None
            return last if isinstance(last, str) and last else swarm.partial(team.swarm)
        case GraphSpec():
            assert team.graph is not None, "made with it"
            return graph.partial(team.graph, team.spec)
        case _:
            assert_never(team.spec)
