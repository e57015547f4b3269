"""Replay: every history ever released still replays, cold and warm, whatever the hash seed."""

import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHistory
from temporalio.worker import (
    Interceptor,
    Replayer,
    StartActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)
from temporalio.workflow import ActivityHandle, NondeterminismError

from perdure import PerdurePlugin
from perdure.settings import load_settings

from .record import RELEASES, digest_of, is_release, newest_release
from .scenarios import TEAMS

HISTORIES = sorted((Path(__file__).parent / "histories").glob("*/*.json"))
NAMES = [f"{path.parent.name}/{path.stem}" for path in HISTORIES]

ASKED: dict[str, list[Any]] = {}
"""By workflow id: what the replayed code gave each activity. The server compares names only."""


class _Listening(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> "ActivityHandle[Any]":  # noqa: A002
        from temporalio import workflow

        asked = ASKED.setdefault(workflow.info().run_id, [])
        asked.append([json.loads(_json(argument)) for argument in input.args])
        return super().start_activity(input)


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Listening(outbound))


class Listening(Interceptor):
    """Writes down what replayed runs ask of activities."""

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor] | None:
        return _Inbound


def _json(value: Any) -> bytes:
    from perdure.workers.converter import data_converter

    payload = data_converter(None, 10**9).payload_converter.to_payloads([value])[0]
    return payload.data


def replayer(home: Path, *, strict: bool = False) -> Replayer:
    # With the members, because the conditions of graphs run again.
    plugin = PerdurePlugin(TEAMS, settings=load_settings(home=home, strict_sandbox=strict))
    # The namespace is part of idempotency keys, so it must be the recorded one.
    return Replayer(workflows=[], namespace="default", plugins=[plugin], interceptors=[Listening()])


def history_of(path: Path) -> WorkflowHistory:
    name = path.stem.rpartition("-")[0].replace("=", "/")
    return WorkflowHistory.from_json(f"replay-{name}", path.read_text())


def recorded(history: WorkflowHistory) -> list[Any]:
    """What the recorded run gave each activity."""
    scheduled = [
        event.activity_task_scheduled_event_attributes
        for event in history.events
        if event.HasField("activity_task_scheduled_event_attributes")
    ]
    return [[json.loads(payload.data) for payload in one.input.payloads] for one in scheduled]


async def changed_histories(
    home: Path, paths: Sequence[Path] = HISTORIES, *, strict: bool = False
) -> list[str]:
    """Replay the histories with one worker; return those that fail or ask activities for something else."""
    histories = {f"{path.parent.name}/{path.stem}": history_of(path) for path in paths}

    async def each() -> AsyncIterator[WorkflowHistory]:
        for history in histories.values():
            yield history

    ASKED.clear()
    results = await replayer(home, strict=strict).replay_workflows(each(), raise_on_replay_failure=False)
    failed = results.replay_failures
    return [
        f"{name}: {failed.get(history.run_id, 'asks for something else')}"
        for name, history in histories.items()
        if history.run_id in failed or ASKED.get(history.run_id, []) != recorded(history)
    ]


async def test_strict_sandbox_passes_all_histories(tmp_path: Path) -> None:
    """Our own workflow code does nothing that the sandbox forbids, on any recorded path."""
    assert await changed_histories(tmp_path, strict=True) == []


@pytest.mark.parametrize("path", HISTORIES, ids=NAMES)
async def test_a_recorded_history_replays_cold_and_warm_and_asks_for_the_same(
    path: Path, tmp_path: Path
) -> None:
    history = history_of(path)
    again = replayer(tmp_path)
    for _ in ("cold", "warm"):
        ASKED.clear()
        result = await again.replay_workflow(history)
        assert result.replay_failure is None
        [asked] = ASKED.values() or [[]]
        assert asked == recorded(history)


def test_histories_of_a_release_stay_as_they_were_recorded() -> None:
    """Who changes what a release wrote does not record it anew, but adds a layout, or a patch."""
    releases: dict[str, str] = json.loads(RELEASES.read_text())
    assert {version: digest_of(version) for version in releases} == releases
    assert {folder.name for folder in RELEASES.parent.iterdir() if is_release(folder.name)} == {*releases}
    assert "0.3.0" in releases


def test_there_are_histories_of_every_kind_of_end() -> None:
    names = {path.stem.rpartition("-")[0] for path in newest_release().glob("*.json")}
    assert {
        "parallel",
        "approval",
        "stopped",
        "cancelled",
        "deadline",
        "parked",
        "typed",
        "continued",
        "swarm",
        "graph",
        "supervisor",
        "supervisor=~middle-1-1=~sub-1-1",
        "collector",
        "tree_cancelled=~hanger-1-1",
        "planner",
        "session",
        "swarm_session",
        "swarm_session=~turn2.finder-1",
        "graph_session",
    } <= names
    assert "continued-3" in {path.stem for path in HISTORIES}, "one that continued as new, whole"


_REPLAY_ALL = """
import asyncio, pathlib, sys
from perdure.workers.worker import exit_now
from tests.replay.test_replay import changed_histories
changed = asyncio.run(changed_histories(pathlib.Path(sys.argv[1])))
print(*changed, sep="\\n")
exit_now(1 if changed else 0)
"""
"""Replays all histories, and ends as our workers do: Python's own exit may crash after Temporal's SDK was used."""


@pytest.mark.parametrize("seed", ["0", "4711"])
def test_they_replay_under_another_hash_seed(seed: str, tmp_path: Path) -> None:
    finished = subprocess.run(
        [sys.executable, "-c", _REPLAY_ALL, str(tmp_path)],
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (finished.returncode, finished.stdout[-3000:].strip()) == (0, ""), finished.stderr[-3000:]


async def test_altered_answer_is_noticed_among_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check of all histories together is worth something too."""

    def otherwise(_: WorkflowHistory) -> list[Any]:
        return [["something else"]]

    monkeypatch.setattr(sys.modules[__name__], "recorded", otherwise)
    assert len(await changed_histories(tmp_path, HISTORIES[:3])) == 3


async def test_an_altered_history_fails(tmp_path: Path) -> None:
    """Two tool calls in the other order: the check is worth something."""
    path = next(path for path in HISTORIES if path.stem == "approval-1")
    events = json.loads(path.read_text())["events"]
    altered = [event for event in events if "activityTaskScheduledEventAttributes" in event]
    altered[0]["activityTaskScheduledEventAttributes"]["activityType"]["name"] = "call_tool"
    with pytest.raises(NondeterminismError):
        await replayer(tmp_path).replay_workflow(
            WorkflowHistory.from_json("replay-approval", json.dumps({"events": events}))
        )


async def test_an_altered_answer_is_noticed_though_the_server_would_not(tmp_path: Path) -> None:
    """The tool's name in a model's answer is another: same activities, other inputs."""
    path = next(path for path in HISTORIES if path.stem == "continued-1")
    history = history_of(path)
    for event in history.events:
        done = event.activity_task_completed_event_attributes
        for payload in done.result.payloads:
            payload.data = payload.data.replace(b'"arguments":{"n":2}', b'"arguments":{"n":9}')
    ASKED.clear()
    await replayer(tmp_path).replay_workflow(history)
    [asked] = ASKED.values()
    assert asked != recorded(history_of(path))
