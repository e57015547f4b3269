"""The scheduler of a swarm: whose turn it is, what it is told, and that every limit is kept exactly."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from perdure.limits import SwarmLimits
from perdure.messages import Image, Part, Text
from perdure.scheduling import Over, Start
from perdure.wire.results import Failure, NodeResult
from perdure.wire.spec import SwarmSpec
from perdure.wire.tree import Handoff, Peer
from perdure.workflows.engine.swarm import SwarmProgress, SwarmScheduler

PLAN = TypeAdapter(SwarmProgress)
SAYS = {"a": "Finds.", "b": "", "c": "Writes."}


SPEC_OF_NO_MATTER = SwarmSpec(name="s", agents=("a",), entry="a")


def begin(spec: SwarmSpec, descriptions: Mapping[str, str], task: str | list[Part]) -> SwarmProgress:
    return SwarmScheduler(spec).begin(task, descriptions)


def startable(progress: SwarmProgress, spec: SwarmSpec) -> tuple[Start, ...]:
    return SwarmScheduler(spec).startable(progress)


def started(progress: SwarmProgress, starts: Sequence[Start]) -> SwarmProgress:
    return SwarmScheduler(SPEC_OF_NO_MATTER).record_start(progress, starts)


def ended(progress: SwarmProgress, spec: SwarmSpec, result: NodeResult) -> SwarmProgress:
    return SwarmScheduler(spec).record_end(progress, result)


def over(progress: SwarmProgress, spec: SwarmSpec) -> Over | None:
    return SwarmScheduler(spec).over(progress)


def partial(progress: SwarmProgress) -> Any:
    return SwarmScheduler(SPEC_OF_NO_MATTER).partial(progress)


def spec_of(agents: Sequence[str] = ("a", "b", "c"), **limits: Any) -> SwarmSpec:
    return SwarmSpec(name="s", agents=tuple(agents), entry=agents[0], limits=SwarmLimits(**limits))


def looking_back(window: int, unique: int) -> SwarmSpec:
    return spec_of(repetitive_handoff_detection_window=window, repetitive_handoff_min_unique_agents=unique)


def fresh(spec: SwarmSpec, task: str | list[Part] = "the task") -> SwarmProgress:
    return begin(spec, SAYS, task)


def next_start(progress: SwarmProgress, spec: SwarmSpec) -> Start:
    (start,) = startable(progress, spec)
    return start


def given_back(start: Start, **result: Any) -> NodeResult:
    return NodeResult.model_validate({"key": start.key, "node": start.node, "state": "done", **result})


def finished(progress: SwarmProgress, spec: SwarmSpec, **result: Any) -> SwarmProgress:
    """The progress after one whole run of the agent whose turn it is."""
    start = next_start(progress, spec)
    return ended(started(progress, [start]), spec, given_back(start, **result))


def handed(
    progress: SwarmProgress, spec: SwarmSpec, to: str, message: str = "go on", context: Any = None
) -> SwarmProgress:
    """The progress after a run that hands off."""
    handoff = Handoff(agent_name=to, message=message, context=context or {})
    return finished(progress, spec, stop_reason="handoff", output=handoff.model_dump(mode="json"))


def passed_on(spec: SwarmSpec, *names: str) -> SwarmProgress:
    progress = fresh(spec)
    for name in names:
        progress = handed(progress, spec, name)
    return progress


def prompt(progress: SwarmProgress, spec: SwarmSpec) -> str:
    said = next_start(progress, spec).prompt
    assert isinstance(said, str)
    return said


def bars(progress: SwarmProgress, spec: SwarmSpec) -> dict[str, str | None]:
    return {peer.name: peer.barred for peer in next_start(progress, spec).peers}


# Whose turn it is.


def test_the_entry_agent_runs_first_with_the_time_of_one_run() -> None:
    spec = spec_of(node_timeout=timedelta(seconds=9)).model_copy(update={"entry": "b"})
    start = next_start(fresh(spec), spec)
    assert (start.key, start.node, start.kind, start.member) == ("b-1", "b", "agent", "b")
    assert start.timeout == timedelta(seconds=9)
    assert start.history == ()


def test_nothing_starts_while_an_agent_runs() -> None:
    spec = spec_of()
    progress = fresh(spec)
    progress = started(progress, startable(progress, spec))
    assert startable(progress, spec) == ()
    assert over(progress, spec) is None


def test_a_handoff_gives_the_turn_to_the_agent_it_names() -> None:
    spec = spec_of()
    progress = handed(fresh(spec), spec, "c")
    assert over(progress, spec) is None
    assert next_start(progress, spec).node == "c"


def test_a_key_counts_the_visits_of_its_own_agent() -> None:
    spec = spec_of()
    progress, keys = fresh(spec), list[str]()
    for name in ("b", "a", "c", "a"):
        keys.append(next_start(progress, spec).key)
        progress = handed(progress, spec, name)
    assert [*keys, next_start(progress, spec).key] == ["a-1", "b-1", "a-2", "c-1", "a-3"]


def test_a_result_nobody_waits_for_changes_nothing() -> None:
    spec = spec_of()
    progress = fresh(spec)
    late = NodeResult(key="b-1", node="b", state="done", stop_reason="end_turn", output="late")
    assert ended(progress, spec, late) == progress
    progress = started(progress, startable(progress, spec))
    assert ended(progress, spec, late) == progress
    progress = ended(progress, spec, late.model_copy(update={"key": "a-1"}))
    assert ended(progress, spec, late.model_copy(update={"key": "a-1", "output": "again"})) == progress


# What it is told.


def test_the_first_agent_is_told_the_request_and_who_else_there_is() -> None:
    spec = spec_of()
    assert prompt(fresh(spec), spec) == (
        "User Request: the task\n\n"
        "Other agents available for collaboration:\n"
        "Agent name: b.\n"
        "Agent name: c. Agent description: Writes.\n"
        "\n"
        "If another agent should go on, call handoff_to_agent: your turn ends with it. "
        "If you don't hand off to another agent, your answer is final and the task is complete."
    )


def test_a_later_agent_is_told_what_was_said_done_and_found_in_that_order() -> None:
    spec = spec_of()
    progress = handed(fresh(spec), spec, "b", context={"z": 1, "city": "Köln"})
    progress = handed(progress, spec, "c", message="write it", context={"ok": True})
    assert prompt(progress, spec).split("\n\n")[:-1] == [
        "Handoff Message from b: write it",
        "User Request: the task",
        "Previous agents who worked on this: a → b",
        'Shared knowledge from previous agents:\n• a: {"city":"Köln","z":1}\n• b: {"ok":true}',
        "Other agents available for collaboration:\nAgent name: a. Agent description: Finds.\nAgent name: b.",
    ]


def test_an_agent_without_others_gets_the_bare_task_and_no_peers() -> None:
    spec = spec_of(("a",))
    parts: list[Part] = [Text(text="what is this?"), Image(data="QQ==")]
    assert next_start(fresh(spec), spec).prompt == "the task"
    assert next_start(fresh(spec, parts), spec).prompt == parts
    assert next_start(fresh(spec), spec).peers == ()


def test_what_is_not_text_in_the_task_is_shown_to_every_agent() -> None:
    spec = spec_of()
    image = Image(data="QQ==")
    progress = fresh(spec, [Text(text="what"), image, Text(text="is this?")])
    for expected in ("User Request: what\nis this?", "Handoff Message from a: go on"):
        said = next_start(progress, spec).prompt
        assert isinstance(said, list)
        assert said[0] == image
        assert isinstance(said[1], Text)
        assert said[1].text.startswith(expected)
        progress = handed(progress, spec, "b")


def test_a_task_of_pictures_only_is_pointed_to() -> None:
    spec = spec_of()
    said = next_start(fresh(spec, [Image(data="QQ==")]), spec).prompt
    assert isinstance(said, list)
    assert isinstance(said[-1], Text)
    assert said[-1].text.startswith("User Request: see what is attached.")


def test_peers_are_all_the_others_in_order_with_what_they_are_good_for() -> None:
    spec = spec_of()
    progress = handed(fresh(spec), spec, "b")
    assert next_start(progress, spec).peers == (
        Peer(name="a", description="Finds."),
        Peer(name="c", description="Writes."),
    )


def test_an_agent_is_not_told_of_others_when_it_cannot_hand_off() -> None:
    spec = spec_of(max_handoffs=0)
    said = prompt(fresh(spec), spec)
    assert "Agent name" not in said
    assert "finish the task yourself" in said


def test_an_agent_is_told_only_of_those_it_can_hand_off_to() -> None:
    spec = looking_back(3, 3)
    progress = passed_on(spec, "b")
    assert bars(progress, spec) == {"a": "repetitive_handoff", "c": None}
    assert "Agent name: c." in prompt(progress, spec)
    assert "Agent name: a." not in prompt(progress, spec)


# Limits.


def test_max_handoffs_of_one_allows_one_handoff() -> None:
    spec = spec_of(max_handoffs=1)
    assert bars(fresh(spec), spec) == {"b": None, "c": None}
    progress = handed(fresh(spec), spec, "b")
    assert bars(progress, spec) == {"a": "max_handoffs", "c": "max_handoffs"}
    progress = finished(progress, spec, stop_reason="end_turn", output="done")
    assert over(progress, spec) == Over(stop_reason="end_turn", output="done")


def test_max_handoffs_of_none_allows_no_handoff() -> None:
    spec = spec_of(max_handoffs=0)
    assert bars(fresh(spec), spec) == {"b": "max_handoffs", "c": "max_handoffs"}


def test_max_iterations_counts_the_first_run_too() -> None:
    spec = spec_of(max_iterations=2)
    assert bars(fresh(spec), spec) == {"b": None, "c": None}
    progress = handed(fresh(spec), spec, "b")
    assert bars(progress, spec) == {"a": "max_iterations", "c": "max_iterations"}
    assert bars(fresh(spec_of(max_iterations=1)), spec_of(max_iterations=1))["b"] == "max_iterations"


def test_used_up_handoffs_are_named_before_used_up_runs() -> None:
    spec = spec_of(max_handoffs=0, max_iterations=1)
    assert bars(fresh(spec), spec)["b"] == "max_handoffs"


def test_repetition_is_not_looked_for_before_there_are_enough_runs() -> None:
    spec = looking_back(4, 3)
    assert bars(fresh(spec), spec) == {"b": None, "c": None}
    assert bars(passed_on(spec, "b"), spec) == {"a": None, "c": None}


def test_repetition_is_seen_with_the_run_that_would_complete_the_window() -> None:
    spec = looking_back(4, 3)
    assert bars(passed_on(spec, "b", "a"), spec) == {"b": "repetitive_handoff", "c": None}


def test_what_lies_before_the_window_does_not_count() -> None:
    spec = looking_back(3, 3)
    progress = passed_on(spec, "b", "c")
    assert bars(progress, spec) == {"a": None, "b": "repetitive_handoff"}


def test_without_a_window_agents_may_go_to_and_fro() -> None:
    spec = looking_back(0, 0)
    assert bars(passed_on(spec, "b", "a", "b", "a"), spec) == {"b": None, "c": None}


def test_the_last_word_after_a_barred_handoff_is_the_answer_with_the_limit_as_reason() -> None:
    spec = spec_of(max_handoffs=1)
    progress = passed_on(spec, "b")
    progress = finished(progress, spec, stop_reason="max_handoffs", output="as far as I got")
    assert over(progress, spec) == Over(stop_reason="max_handoffs", output="as far as I got")
    assert progress.handoffs == 1


# Shared context.


def test_what_an_agent_shares_twice_is_merged_and_the_last_word_counts() -> None:
    spec = spec_of()
    progress = handed(fresh(spec), spec, "b", context={"x": 1, "y": {"deep": 1}})
    progress = handed(progress, spec, "a", context={"x": 0})
    progress = handed(progress, spec, "b", context={"y": {"other": 2}, "z": None})
    assert progress.shared_context == {"a": {"x": 1, "y": {"other": 2}, "z": None}, "b": {"x": 0}}


def test_an_agent_that_shares_nothing_is_not_listed() -> None:
    spec = spec_of()
    progress = handed(fresh(spec), spec, "b")
    assert progress.shared_context == {}
    assert "Shared knowledge" not in prompt(progress, spec)


def test_shared_context_belongs_to_one_run() -> None:
    spec = spec_of()
    first = fresh(spec)
    told = handed(first, spec, "b", context={"x": 1})
    assert told.shared_context == {"a": {"x": 1}}
    assert first.shared_context == {}
    assert fresh(spec).shared_context == {}
    assert handed(fresh(spec), spec, "b", context={"y": 2}).shared_context == {"a": {"y": 2}}


# How it ends.


@pytest.mark.parametrize("output", ["the answer", "", None, {"city": "Bonn"}])
def test_an_answer_ends_the_swarm_and_is_its_output(output: Any) -> None:
    spec = spec_of()
    progress = finished(passed_on(spec, "b"), spec, stop_reason="end_turn", output=output)
    assert over(progress, spec) == Over(stop_reason="end_turn", output=output)
    assert startable(progress, spec) == ()


@pytest.mark.parametrize(
    "reason", ["max_steps", "refusal", "cost_budget", "node_timeout", "stopped", "context_overflow"]
)
def test_an_agent_that_ends_early_ends_the_swarm_with_its_reason_and_words(reason: Any) -> None:
    spec = spec_of()
    progress = finished(fresh(spec), spec, stop_reason=reason, output="so far")
    assert over(progress, spec) == Over(stop_reason=reason, output="so far")


@pytest.mark.parametrize("nothing", [None, "", " \n"])
def test_an_early_end_without_words_keeps_what_was_handed_on(nothing: Any) -> None:
    spec = spec_of()
    progress = handed(fresh(spec), spec, "b", message="I found it in Bonn")
    progress = finished(progress, spec, stop_reason="node_timeout", output=nothing)
    assert over(progress, spec) == Over(stop_reason="node_timeout", output="I found it in Bonn")


def test_an_agent_that_fails_fails_the_swarm_which_names_it() -> None:
    spec = spec_of()
    progress = handed(fresh(spec), spec, "b", message="found")
    error = Failure(kind="authentication", message="no key", model="scripted:x", step=2)
    progress = finished(progress, spec, state="failed", stop_reason="error", error=error)
    named = error.model_copy(update={"message": "agent 'b': no key"})
    assert over(progress, spec) == Over(stop_reason="error", output="found", failure=named)


def test_a_failure_that_does_not_explain_itself_is_still_a_failure() -> None:
    spec = spec_of()
    end = over(finished(fresh(spec), spec, state="failed", output="half"), spec)
    assert end is not None
    assert end.failure is not None
    assert (end.stop_reason, end.output, end.failure.kind) == ("error", "half", "bug")


@pytest.mark.parametrize("reason", [None, "handoff", "cancelled"])
def test_an_agent_that_is_cancelled_hands_off_to_nobody(reason: Any) -> None:
    spec = spec_of()
    progress = finished(fresh(spec), spec, state="cancelled", stop_reason=reason, output="half")
    assert over(progress, spec) == Over(stop_reason="cancelled", output="half")


def test_a_run_that_just_ends_has_answered() -> None:
    spec = spec_of()
    assert over(finished(fresh(spec), spec, output="hi"), spec) == Over(stop_reason="end_turn", output="hi")


@pytest.mark.parametrize(
    ("output", "why"),
    [
        ({"agent_name": "nobody", "message": "go"}, "handed off to 'nobody'"),
        ({"agent_name": "a", "message": "go"}, "handed off to 'a'"),
        ({"message": "go"}, "without saying to whom"),
        ("b", "without saying to whom"),
        (None, "without saying to whom"),
    ],
)
def test_a_handoff_to_nowhere_ends_the_swarm_as_failed(output: Any, why: str) -> None:
    spec = spec_of()
    end = over(finished(fresh(spec), spec, stop_reason="handoff", output=output), spec)
    assert end is not None
    assert end.stop_reason == "error"
    assert end.failure is not None
    assert why in end.failure.message


def test_a_handoff_past_a_limit_ends_the_swarm_with_that_limit() -> None:
    spec = spec_of(max_handoffs=1)
    progress = handed(passed_on(spec, "b"), spec, "c", message="too far", context={"x": 1})
    assert over(progress, spec) == Over(stop_reason="max_handoffs", output="too far")
    assert (progress.handoffs, progress.visits, progress.shared_context) == (1, ("a", "b"), {})


def test_what_is_best_so_far_is_what_was_last_handed_on_or_answered() -> None:
    spec = spec_of()
    progress = fresh(spec)
    assert partial(progress) == ""
    progress = handed(progress, spec, "b", message="first")
    assert partial(progress) == "first"
    progress = handed(progress, spec, "c", message=" ")
    assert partial(progress) == "first"
    assert partial(started(progress, startable(progress, spec))) == "first"
    assert partial(finished(progress, spec, stop_reason="max_steps", output="second")) == "second"


# Whatever the agents do.


@dataclass(frozen=True)
class Move:
    """What an agent does with its turn. `blindly`: it hands off without looking who is barred."""

    does: str
    to: int
    blindly: bool
    context: dict[str, Any]
    reread: bool
    """The swarm continues as new, before and after."""


def random_spec(agents: int, handoffs: int, runs: int, looking: tuple[int, int]) -> SwarmSpec:
    return spec_of(
        "abcde"[:agents],
        max_handoffs=handoffs,
        max_iterations=runs,
        repetitive_handoff_detection_window=looking[0],
        repetitive_handoff_min_unique_agents=looking[1],
    )


CONTEXTS = st.dictionaries(
    st.sampled_from(["x", "y"]), st.none() | st.integers() | st.text() | st.lists(st.booleans()), max_size=2
)
MOVES = st.lists(
    st.builds(
        Move,
        does=st.sampled_from(["hand"] * 12 + ["answer", "fail", "tire", "go astray", "cancel"]),
        to=st.integers(0, 9),
        blindly=st.booleans(),
        context=CONTEXTS,
        reread=st.booleans(),
    ),
    max_size=25,
)
WINDOWS = st.integers(0, 5).flatmap(lambda window: st.tuples(st.just(window), st.integers(0, window)))
SPECS = st.builds(random_spec, st.integers(1, 5), st.integers(0, 12), st.integers(1, 12), WINDOWS)
TASKS: st.SearchStrategy[Any] = st.text(min_size=1) | st.just([Text(text="see"), Image(data="QQ==")])


def reread(progress: SwarmProgress) -> SwarmProgress:
    again = PLAN.validate_json(PLAN.dump_json(progress))
    assert again == progress
    return again


def result_of(move: Move, start: Start) -> NodeResult:
    """What a run gives in which the agent makes that move, as the loop would report it."""
    said = f"said in {start.key}"
    match move.does:
        case "hand" if start.peers:
            peer = start.peers[move.to % len(start.peers)]
            if peer.barred is not None and not move.blindly:
                return given_back(start, stop_reason=peer.barred, output=said)
            handoff = Handoff(agent_name=peer.name, message=f"from {start.key}", context=move.context)
            return given_back(start, stop_reason="handoff", output=handoff.model_dump(mode="json"))
        case "go astray":
            wrong: Any = [{"agent_name": start.node, "message": "me"}, {"agent_name": "z", "message": ""}, 7]
            return given_back(start, stop_reason="handoff", output=wrong[move.to % 3])
        case "fail":
            return given_back(start, state="failed", error=Failure(kind="bug", message="no"))
        case "cancel":
            return given_back(start, state="cancelled", stop_reason="cancelled")
        case "tire":
            return given_back(start, stop_reason="max_steps", output=said)
        case _:
            return given_back(start, stop_reason="end_turn", output=said)


def play(
    spec: SwarmSpec, task: Any, moves: Sequence[Move], *, carried: bool
) -> tuple[SwarmProgress, list[Start], int]:
    """A whole swarm: its last progress, what it started, and how many handoffs were followed."""
    progress, starts, followed = fresh(spec, task), list[Start](), 0
    script = iter(moves)
    while over(progress, spec) is None:
        move = next(script, Move("answer", 0, False, {}, False))
        (start,) = startable(progress, spec)
        again = carried and move.reread
        progress = started(reread(progress) if again else progress, [start])
        assert startable(progress, spec) == ()
        starts.append(start)
        result = result_of(move, start)
        progress = ended(reread(progress) if again else progress, spec, result)
        allowed = {peer.name for peer in start.peers if peer.barred is None}
        if result.stop_reason == "handoff" and over(progress, spec) is None:
            followed += 1
            assert progress.turn in allowed, "nobody runs to whom nothing may be handed"
            assert progress.turn == result.output["agent_name"]
        elif result.stop_reason == "handoff" and move.does == "hand":
            assert result.output["agent_name"] not in allowed, "a handoff that is allowed is followed"
    return progress, starts, followed


@given(SPECS, TASKS, MOVES)
def test_no_script_passes_a_limit_and_every_end_has_a_reason(
    spec: SwarmSpec, task: Any, moves: list[Move]
) -> None:
    progress, starts, followed = play(spec, task, moves, carried=False)
    visits, limits = tuple(start.node for start in starts), spec.limits
    assert progress.visits == visits
    assert followed == progress.handoffs == len(visits) - 1
    assert followed <= limits.max_handoffs
    assert len(visits) <= limits.max_iterations
    assert len({start.key for start in starts}) == len(starts)
    window = limits.repetitive_handoff_detection_window
    for end in range(max(window, 1), len(visits) + 1):
        latest = visits[end - window : end]
        assert len({*latest}) >= limits.repetitive_handoff_min_unique_agents
    end_of_it = over(progress, spec)
    assert end_of_it is not None
    assert end_of_it.stop_reason != "handoff"
    assert (end_of_it.failure is not None) == (end_of_it.stop_reason == "error")
    assert startable(progress, spec) == ()


@given(SPECS, TASKS, MOVES)
def test_continuing_as_new_at_any_moment_changes_nothing(
    spec: SwarmSpec, task: Any, moves: list[Move]
) -> None:
    progress, starts, _ = play(spec, task, moves, carried=False)
    again, same, _ = play(spec, task, moves, carried=True)
    assert again == progress
    assert same == starts
    assert reread(progress) == progress


@given(SPECS, MOVES)
def test_a_plan_is_never_changed_only_followed_by_another(spec: SwarmSpec, moves: list[Move]) -> None:
    progress = fresh(spec)
    for move in moves:
        written = repr(progress)
        starts = startable(progress, spec)
        if not starts:
            break
        running = started(progress, starts)
        assert repr(progress) == written
        written = repr(running)
        progress = ended(running, spec, result_of(move, starts[0]))
        assert repr(running) == written
        assert len(progress.visits) == len(running.visits)
        assert progress.handoffs - running.handoffs in {0, 1}
