"""Patterns without a server: definitions, the rules around a user's scheduler, and the purity of the debate's."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pytest

from perdure import Agent, DefinitionError, Graph, NodeResult
from perdure.limits import PatternLimits
from perdure.members import Member, collect_members, resolve_member
from perdure.messages import Part, Usage
from perdure.pattern import Over, Pattern, PatternSpec, Scheduler, Start, by_name, scheduler_factories
from perdure.scheduling import progress_adapter
from perdure.starter.draw.picture import build_picture
from perdure.tools import as_tool
from perdure.wire.spec import AnySpec
from perdure.workers.plugin import members_by_name
from perdure.workflows.engine.graph import MissingCode
from perdure.workflows.engine.pattern import (
    BrokenContract,
    PatternProgress,
    PatternScheduler,
    bounded_scheduler,
)
from perdure.workflows.engine.programs import program_for
from tests.debates import load_debate

debate = load_debate()


def agent(name: str) -> Agent:
    return Agent(name=name, model=f"scripted:{name}", description=f"Knows {name}.")


def debate_of(*names: str, rounds: int = 2, **limits: Any) -> Any:
    return debate.Debate(
        name="talk",
        speakers=[agent(name) for name in names],
        judge=agent("judge"),
        rounds=rounds,
        limits=PatternLimits(**limits),
    )


def scheduler_of(pattern: Any) -> PatternScheduler:
    spec = pattern.spec()
    return bounded_scheduler(spec, pattern.scheduler(spec))


def ended(start: Start, output: Any = "yes", **changed: Any) -> NodeResult:
    fields: dict[str, Any] = {"state": "done", "stop_reason": "end_turn", "usage": Usage(), "output": output}
    return NodeResult(key=start.key, node=start.node, kind=start.kind, **{**fields, **changed})


def play(scheduler: PatternScheduler, *, carried: bool) -> list[tuple[str, str]]:
    """Return key and prompt of all nodes; `carried`: the progress passes through JSON between any two events."""
    adapter = progress_adapter(scheduler.progress_type)

    def carry(progress: PatternProgress[Any]) -> PatternProgress[Any]:
        if not carried:
            return progress
        # As continue-as-new carries it: without its type, which only the scheduler knows.
        text = json.dumps(progress_adapter(Any).dump_python(progress, mode="json"))
        restored: PatternProgress[Any] = adapter.validate_python(json.loads(text))
        assert restored == progress
        return restored

    progress, log, running = scheduler.begin("why?", {}), list[tuple[str, str]](), list[Start]()
    while scheduler.over(progress) is None:
        starts = scheduler.startable(progress)
        assert starts == scheduler.startable(progress), "the same progress gives the same starts"
        log += [(start.key, str(start.prompt)) for start in starts]
        progress = carry(scheduler.record_start(progress, starts))
        running += starts
        # The newest ends first: the order of the ends must not change what is said.
        progress = carry(scheduler.record_end(progress, ended(last := running.pop(), f"{last.key} says")))
    return log


# -- the debate


def test_debate_plan_survives_json() -> None:
    """A progress that was carried as JSON leads to the same nodes and prompts."""
    scheduler = scheduler_of(debate_of("a", "b", "c", rounds=3))
    log = play(scheduler, carried=True)
    assert log == play(scheduler, carried=False)
    assert [key for key, _ in log] == [f"{name}-{n}" for n in (1, 2, 3) for name in "abc"] + ["judge-1"]


def test_speakers_read_each_other() -> None:
    prompts = dict(play(scheduler_of(debate_of("a", "b")), carried=False))
    assert prompts["a-1"] == prompts["b-1"] == "why?"
    assert "You: a-1 says\n\nb: b-1 says" in prompts["a-2"]
    assert "a: a-2 says\n\nb: b-2 says" in prompts["judge-1"]


@pytest.mark.parametrize("rounds", [1, 4])
def test_rounds_are_bounded(rounds: int) -> None:
    log = play(scheduler_of(debate_of("a", "b", rounds=rounds)), carried=False)
    assert len(log) == 2 * rounds + 1


def test_debate_ends_when_nobody_changes_their_mind() -> None:
    scheduler = scheduler_of(debate_of("a", "b", rounds=9))
    progress = scheduler.begin("why?", {})
    for _ in range(2):
        starts = scheduler.startable(progress)
        progress = scheduler.record_start(progress, starts)
        for start in starts:
            progress = scheduler.record_end(progress, ended(start, "because"))
    assert [start.key for start in scheduler.startable(progress)] == ["judge-1"]


def test_partial_has_newest_answers() -> None:
    scheduler = scheduler_of(debate_of("a", "b"))
    progress = scheduler.begin("why?", {})
    a, b = scheduler.startable(progress)
    progress = scheduler.record_start(progress, (a, b))
    assert scheduler.partial(progress) == {}
    progress = scheduler.record_end(progress, ended(a, "first"))
    assert scheduler.partial(progress) == {"a": "first"}
    progress = scheduler.record_end(progress, ended(b, "second"))
    again, _ = starts = scheduler.startable(progress)
    progress = scheduler.record_end(scheduler.record_start(progress, starts), ended(again, "third"))
    assert scheduler.partial(progress) == {"a": "third", "b": "second"}


def test_results_of_unknown_keys_change_nothing() -> None:
    scheduler = scheduler_of(debate_of("a", "b"))
    progress = scheduler.begin("why?", {})
    assert scheduler.record_end(progress, ended(Start(key="x-1", node="x"))) == progress


# -- the spec


def test_spec_pins_settings_and_members() -> None:
    spec: PatternSpec = debate_of("a", "b", rounds=3).spec()
    assert (spec.kind, spec.pattern, spec.settings) == ("pattern", "debate", {"judge": "judge", "rounds": 3})
    assert spec.members == {"a": "agent", "b": "agent", "judge": "agent"}
    back: Any = progress_adapter(AnySpec).validate_json(spec.model_dump_json())
    assert back == spec
    assert back.hash == spec.hash
    assert debate_of("a", "b", rounds=2).spec().hash != spec.hash
    changed = replace(debate_of("a", "b", rounds=3), judge=replace(agent("judge"), instructions="Be kind."))
    assert changed.spec().hash != spec.hash, "it covers its members"


def test_patterns_are_members_like_all_others() -> None:
    """A pattern is a node of a graph, a tool of an agent, and a member of another pattern."""
    inner = debate_of("a", "b")
    outer = debate.Debate(name="outer", speakers=[inner, agent("c")], judge=agent("chief"))
    graph = Graph(name="graph", description="Talks.", nodes={"talk": outer}, entry="talk")
    caller = Agent(name="caller", model="scripted:caller", tools=[as_tool(graph)])
    assert graph.spec().nodes[0].kind == "pattern"
    assert list(outer.spec().members.values()) == ["pattern", "agent", "agent"]
    assert list(collect_members(caller)) == [
        *("caller", "graph", "outer", "talk", "c", "chief", "a", "b", "judge")
    ]
    assert set(members_by_name([caller])) == set(collect_members(caller))


def test_drawing_shows_its_members() -> None:
    drawn = build_picture(resolve_member(debate_of("a", "b")))
    assert (drawn.title, [box.name for box in drawn.boxes]) == ("debate talk", ["a", "b", "judge"])
    assert drawn.notes == ("its scheduler chooses who runs next",)


# -- definitions that could not run


@dataclass(frozen=True, kw_only=True)
class Other(Pattern):
    pattern: ClassVar = "other"
    scheduler: ClassVar = debate.DebateScheduler
    some: Sequence[Member] = (agent("judge"),)
    values: Mapping[str, Any] | None = None

    @property
    def members(self) -> dict[str, Member]:
        return by_name(self.some)

    @property
    def settings(self) -> Any:
        return {"judge": "judge", "rounds": 1, **(self.values or {})}


class Nameless(Other):
    pattern: ClassVar = ""


class Schedulerless(Other):
    scheduler: ClassVar = None  # pyright: ignore[reportAssignmentType, reportIncompatibleVariableOverride]


class Unkept(Other):
    scheduler: ClassVar = type("Planless", (debate.DebateScheduler,), {"progress_type": object()})


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda: Other(name="two words"), "pattern name 'two words': use letters"),
        (lambda: Other(name="x", some=[]), "other 'x': it has no members; add at least one"),
        (lambda: Other(name="x", some=[agent("a"), agent("a")]), "two members are called 'a'"),
        (lambda: Other(name="judge"), "two different agents, swarms, graphs or patterns are called 'judge'"),
        (lambda: Other(name="x", limits=3), "limits must be PatternLimits, not 3"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        (lambda: Other(name="x", values={"at": object()}), "its settings are no JSON: at"),
        (lambda: Nameless(name="x"), "set Nameless.pattern to the name of its kind"),
        (lambda: Schedulerless(name="x"), "set Schedulerless.scheduler to the class of its scheduler"),
        (lambda: Unkept(name="x"), "cannot be kept as JSON"),
        (lambda: debate_of("a", rounds=0), "debate 'talk': rounds must be 1 or more, not 0"),
    ],
)
def test_definition_errors_say_what_to_do(make: Any, problem: str) -> None:
    with pytest.raises(DefinitionError) as raised:
        make()
    assert problem in str(raised.value)


def test_two_schedulers_of_one_kind_are_refused() -> None:
    class Twin(Other):
        scheduler: ClassVar = Planner

    with pytest.raises(DefinitionError, match="another class of patterns is called 'other' too"):
        scheduler_factories([Other(name="x"), Twin(name="y", some=[agent("z")])])
    assert scheduler_factories([Other(name="x"), agent("a")]) == {"other": debate.DebateScheduler}


def test_missing_scheduler_is_missing_code() -> None:
    with pytest.raises(
        MissingCode, match="no pattern 'debate' is served here, and 'talk' needs its scheduler"
    ):
        program_for(debate_of("a").spec())


# -- the rules around a scheduler


@dataclass(frozen=True)
class Progress:
    starts: tuple[Start, ...] = ()


@dataclass
class Planner(Scheduler[Progress]):
    """Starts what it was given, again and again."""

    spec: PatternSpec
    progress_type = Progress
    starts: tuple[Start, ...] = ()

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> Progress:
        return Progress(starts=self.starts)

    def startable(self, progress: Progress) -> Sequence[Start]:
        return progress.starts

    def record_start(self, progress: Progress, starts: Sequence[Start]) -> Progress:
        return progress

    def record_end(self, progress: Progress, result: NodeResult) -> Progress:
        return progress

    def over(self, progress: Progress) -> Over | None:
        return None

    def partial(self, progress: Progress) -> str:
        return "so far"


def planned(*starts: Start, **limits: Any) -> tuple[PatternScheduler, PatternProgress[Any]]:
    spec = Other(name="x", limits=PatternLimits(**limits)).spec()
    scheduler = bounded_scheduler(spec, Planner(spec, starts))
    return scheduler, scheduler.begin("go", {})


def test_members_bounds_and_kinds_are_filled_in() -> None:
    scheduler, progress = planned(Start(key="judge-1", node="judge"), node_timeout="PT2M")
    start = scheduler.startable(progress)[0]
    assert (start.member, start.kind, str(start.timeout)) == ("judge", "agent", "0:02:00")


def test_unknown_member_breaks_contract() -> None:
    scheduler, progress = planned(Start(key="who-1", node="who"))
    with pytest.raises(
        BrokenContract, match="scheduler of other 'x': node 'who-1' runs 'who', which is none of its"
    ):
        scheduler.startable(progress)


def test_repeated_key_breaks_contract() -> None:
    start = Start(key="judge-1", node="judge")
    scheduler, progress = planned(start)
    progress = scheduler.record_start(progress, [start])
    with pytest.raises(BrokenContract, match=r"startable\(\) returned the key 'judge-1' twice"):
        scheduler.startable(progress)


def test_retry_of_unknown_start_breaks_contract() -> None:
    """A retry has the identity of the start that it names, so that start must have been made."""
    scheduler, progress = planned(Start(key="judge-1.1", node="judge", retry_of="judge-1"))
    with pytest.raises(BrokenContract, match=r"startable\(\) retries 'judge-1', which has not started"):
        scheduler.startable(progress)
    progress = scheduler.record_start(progress, [Start(key="judge-1", node="judge")])
    [retry] = scheduler.startable(progress)
    assert (retry.act, retry.earlier_attempts) == ("judge-1", 1)


def test_waiting_for_nothing_breaks_contract() -> None:
    scheduler, progress = planned()
    with pytest.raises(BrokenContract, match="nothing runs"):
        scheduler.over(progress)


def test_node_executions_are_bounded() -> None:
    starts = [Start(key=f"judge-{n}", node="judge") for n in (1, 2, 3)]
    scheduler, progress = planned(*starts, max_node_executions=2)
    first = scheduler.startable(progress)
    assert [start.key for start in first] == ["judge-1", "judge-2"]
    progress = scheduler.record_start(progress, first)
    assert scheduler.over(progress) is None, "two are running"
    for start in first:
        progress = scheduler.record_end(progress, ended(start))
    assert scheduler.over(progress) == Over(stop_reason="max_node_executions", output="so far")
