"""The replay gate: code that would decide otherwise is found before it is given any run."""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from temporalio.api.sdk.v1 import ExternalStorageReference
from temporalio.client import WorkflowHistory

from perdure import Agent, PerdurePlugin
from perdure.activities.content.blobs import open_store
from perdure.graph import Edge, Graph, GraphState
from perdure.members import Member
from perdure.settings import load_settings
from perdure.tools import Tool
from perdure.workers.converter import BlobDriver
from perdure.workers.deploys.gate import Check, Gate, _specs_in, up_to_last_decision
from perdure.workers.deploys.histories import (
    Recorder,
    Unread,
    _Execution,
    _round_robin,
    histories_in_files,
    iter_payloads,
)

from .record import newest_release
from .scenarios import AGENTS, TEAMS
from .test_replay import HISTORIES, NAMES, history_of

ROOT = Path(__file__).parents[2]
RELEASE = newest_release()


def gate(home: Path, members: Sequence[Member] = TEAMS) -> Gate:
    return Gate(PerdurePlugin(members, settings=load_settings(home=home)), "default")


def rounds(most: int) -> list[Member]:
    """The agents of the histories, their graph going round that often: it was twice."""

    def _again(state: GraphState) -> bool:
        return state.visits["draft"] < most

    return [_with(one, _again) if isinstance(one, Graph) else one for one in TEAMS]


def _with(graph: Graph, again: Callable[[GraphState], bool]) -> Graph:
    """The graph with another function behind the name that stands in its spec."""
    edges = [
        replace(edge, when=again)
        if isinstance(edge, Edge) and getattr(edge.when, "__name__", "") == "_again"
        else edge
        for edge in graph.edges
    ]
    return replace(graph, edges=edges)


def cut(history: WorkflowHistory, events: int) -> WorkflowHistory:
    return WorkflowHistory(history.workflow_id, history.events[:events])


@pytest.mark.parametrize("path", HISTORIES, ids=NAMES)
async def test_unchanged_code_passes(path: Path, tmp_path: Path) -> None:
    checked = await gate(tmp_path).check(history_of(path))
    assert (checked.verdict, checked.text) == ("ok", "")


@pytest.mark.parametrize("name", ["graph-1", "session-1", "supervisor-1", "approval-1"])
async def test_unchanged_code_passes_at_every_event(name: str, tmp_path: Path) -> None:
    """A run that is open may have been left after any event."""
    history, checks = history_of(RELEASE / f"{name}.json"), gate(tmp_path)
    for events in range(1, len(history.events) + 1, 3):
        if _is_whole(history, events):
            checked = await checks.check(cut(history, events))
            assert checked.verdict == "ok", f"after {events} events: {checked.text}"


def _is_whole(history: WorkflowHistory, events: int) -> bool:
    """Whether the server could give the history so far: what a task asked for comes with its end."""
    whole, part = up_to_last_decision(history), up_to_last_decision(cut(history, events))
    assert whole is not None
    if part is None or events == len(history.events):
        return True
    following = up_to_last_decision(cut(history, events + 1))
    return following is not None and len(following.events) == len(part.events)


@pytest.mark.parametrize(("most", "asked"), [(1, "draft-2"), (9, "draft-3")])
async def test_changed_condition_is_found(most: int, asked: str, tmp_path: Path) -> None:
    checks = gate(tmp_path, rounds(most))
    found = [
        await checks.check(history_of(path)) for path in (RELEASE / "graph-1.json", RELEASE / "graph-2.json")
    ]
    [worst] = [one for one in found if one.verdict != "ok"][:1]
    assert worst.verdict == "nondeterministic"
    assert worst.event is not None
    assert asked in worst.text
    assert "another name for a graph" in worst.hint


async def test_changed_condition_is_found_in_last_decision(tmp_path: Path) -> None:
    """Temporal itself lets pass what an open run asks for beyond its end."""
    history = history_of(RELEASE / "graph-1.json")
    last = next(
        at for at, event in enumerate(history.events) if "draft-2" in str(event) and at > 10
    )  # the second round is about to begin
    checked = await gate(tmp_path, rounds(1)).check(cut(history, last - 1))
    assert (checked.verdict, checked.event) == ("ok", None), "not decided yet"
    checked = await gate(tmp_path, rounds(1)).check(cut(history, last + 1))
    assert checked.verdict == "nondeterministic"


async def test_changed_target_is_found(tmp_path: Path) -> None:
    history = history_of(RELEASE / "graph-2.json")
    for event in history.events:
        for payload in event.activity_task_scheduled_event_attributes.input.payloads:
            payload.data = payload.data.replace(b'"node":"stamp"', b'"node":"stump"')
    checked = await gate(tmp_path).check(history)
    assert checked.verdict == "nondeterministic"
    assert 'node="stump"' in checked.text
    assert 'node="stamp"' in checked.text
    assert checked.event is not None


async def test_missing_function_is_named(tmp_path: Path) -> None:
    without = [one for one in TEAMS if not isinstance(one, Graph)]
    checked = await gate(tmp_path, without).check(history_of(RELEASE / "graph-2.json"))
    assert checked.verdict == "failed"
    assert "the condition '_again' of edge 'decide' -> 'draft' is not in the graph's code" in checked.text


@pytest.mark.parametrize("name", ["approval-1", "continued-1", "continued-2", "session-3"])
async def test_missing_tool_is_named(name: str, tmp_path: Path) -> None:
    history = history_of(RELEASE / f"{name}.json")
    agents = [one for one in (*AGENTS, *TEAMS) if isinstance(one, Agent)]
    whole = await gate(tmp_path, agents).check(history)
    bare = [replace(one, tools=[]) for one in agents]
    checked = await gate(tmp_path, bare).check(history_of(RELEASE / f"{name}.json"))
    [agent] = [one for one in agents if one.name == whole.agent]
    gone = sorted(f"{agent.name}: {one.name}" for one in agent.tools if isinstance(one, Tool))
    assert gone
    assert list(checked.missing) == gone
    assert (whole.missing, whole.verdict, checked.verdict) == ((), "ok", "ok")


def test_user_data_is_no_spec() -> None:
    looks_like: dict[str, object] = {"name": "a", "instructions": "be nice", "tools": ["a"]}
    for said in ({"context": {"spec": looks_like}}, {"spec": looks_like}, [looks_like], {"spec": 5}, "x"):
        assert list(_specs_in(said)) == []


async def test_run_without_decision_passes(tmp_path: Path) -> None:
    checked = await gate(tmp_path).check(cut(history_of(RELEASE / "graph-1.json"), 2))
    assert checked == Check(id="replay-graph", run_id=checked.run_id, agent="graph", events=2, verdict="ok")


async def test_recorded_history_needs_no_blob_store(tmp_path: Path) -> None:
    checks = gate(tmp_path / "one")
    history = history_of(RELEASE / "approval-1.json")
    [payload] = history.events[0].workflow_execution_started_event_attributes.input.payloads
    driver = BlobDriver(open_store(f"file:{tmp_path}/one/blobs"))
    [claim] = await driver.store(None, [payload])  # type: ignore[arg-type]
    reference = ExternalStorageReference(driver_name=driver.name(), claim_data=claim.claim_data)
    [stored] = await checks.converter.encode([reference])
    stored.metadata["encoding"] = b"json/protobuf"
    payload.CopyFrom(stored)
    lost = await gate(tmp_path / "another").check(history)
    assert (lost.verdict, "no blob" in lost.text) == ("unread", True)
    assert (await checks.check(history)).verdict == "ok"
    Recorder(folder=tmp_path / "kept").keep(history)
    [kept] = [one async for one in histories_in_files(tmp_path / "kept", 10)]
    assert isinstance(kept, WorkflowHistory)
    assert kept.workflow_id == "replay-approval"
    assert (await gate(tmp_path / "third").check(kept)).verdict == "ok"


async def test_file_without_history_is_unread(tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text("{}")
    [found] = [one async for one in histories_in_files(tmp_path, 10)]
    assert isinstance(found, Unread)
    assert str(tmp_path / "x.json") == found.id


def test_every_payload_of_history_is_found() -> None:
    history = history_of(RELEASE / "approval-1.json")
    found = [payload for event in history.events for payload in iter_payloads(event)]
    assert len(found) == history.to_json().count('"encoding"')


def test_chosen_histories_are_of_all_kinds() -> None:
    many = deque(_Execution(id=f"many-{n}", run_id="") for n in range(9))
    few = deque([_Execution(id="few", run_id="")])
    chosen = [one.id for one in _round_robin([many, few], 4)]
    assert chosen == ["many-0", "few", "many-1", "many-2"]


def check(*words: str, home: Path) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "perdure", "replay-check", "tests.replay.scenarios", *words],
        cwd=ROOT,
        env={**os.environ, "PERDURE_HOME": str(home)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_command_reports_each_history(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    text = (RELEASE / "typed-1.json").read_text()
    (kept / "typed.json").write_text(text)
    fine = check("--histories", str(kept), home=tmp_path)
    assert (fine.returncode, fine.stderr) == (0, "replayed 1 histories: 1 ok\n")
    assert fine.stdout == "ok                replay-typed (typed, 25 events)\n"

    (kept / "other.json").write_text(text.replace('"name": "call_model"', '"name": "call_tool"'))
    wrong = check("--histories", str(kept), "--json", home=tmp_path)
    assert wrong.returncode == 1
    told = json.loads(wrong.stdout)
    assert told["counts"] == {"nondeterministic": 1, "ok": 1}
    assert "Do not give these runs to this code" in wrong.stderr
    nothing = check("--histories", str(tmp_path / "none"), home=tmp_path)
    assert nothing.returncode == 2
    assert "no histories there" in nothing.stderr


def test_unreachable_server_checks_nothing(tmp_path: Path) -> None:
    away = check("--address", "127.0.0.1:1", home=tmp_path)
    assert away.returncode == 2
    assert "nothing was checked: no Temporal server answers" in away.stderr
