"""`perdure graph`: where it takes the drawing from, where it puts it, and what it refuses."""

import json
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import WorkflowExecutionStatus

from perdure.errors import NotReachable, RunNotFound
from perdure.starter.cli import app as cli
from perdure.starter.cli import graph
from perdure.starter.cli.options import Common
from perdure.starter.client.inspect import StatusPoll, poll_until_ended, read_reconciled_status
from perdure.starter.client.run import Run
from perdure.wire.results import Approval, NodeStatus, RunStatus
from perdure.wire.spec import EdgeSpec, GraphSpec, NodeSpec, ResolvedAgent

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 11, 20, tzinfo=UTC)
REVIEW = ResolvedAgent(
    spec=GraphSpec(
        name="review",
        nodes=(NodeSpec(name="draft", kind="agent"), NodeSpec(name="publish", kind="function")),
        edges=(EdgeSpec(source="draft", target="publish", when="approved"),),
        entries=("draft",),
    )
)
RUNNING = NodeStatus(key="draft-1", node="draft", state="running")
DONE = NodeStatus(key="draft-1", node="draft", state="done")


def status(*nodes: NodeStatus, **changed: Any) -> RunStatus:
    given: dict[str, Any] = {"agent": "review", "status": "acting", "doing": "", "nodes": list(nodes)}
    return RunStatus(**{**given, **changed})


@dataclass
class FakeRun:
    """A run whose looks are given beforehand; the last one stays."""

    id: str
    looks: list[RunStatus | Exception] = field(default_factory=lambda: [status(RUNNING)])
    state: str = "RUNNING"
    resolved: ResolvedAgent | Exception = REVIEW

    async def spec(self) -> ResolvedAgent:
        if isinstance(self.resolved, Exception):
            raise self.resolved
        return self.resolved

    async def describe(self) -> Any:
        return SimpleNamespace(status=WorkflowExecutionStatus[self.state])

    async def reconciled_status(self) -> RunStatus:
        return await read_reconciled_status(cast("Run", self))

    def poll_status(self, *, interval: timedelta) -> AsyncIterator[StatusPoll]:
        return poll_until_ended(cast("Run", self), interval=interval)

    async def status(self) -> RunStatus:
        look = self.looks.pop(0) if len(self.looks) > 1 else self.looks[0]
        if isinstance(look, Exception):
            raise look
        return look


@dataclass
class FakeClient:
    """A client that knows some runs, the newest first."""

    runs: list[FakeRun]

    def get(self, id: str) -> FakeRun:  # noqa: A002
        missing = FakeRun(id, resolved=RunNotFound(f"there is no run {id!r}"))
        return next((run for run in self.runs if run.id == id), missing)

    async def newest_run(self, agent: str) -> FakeRun:
        for run in self.runs:
            if isinstance(run.resolved, ResolvedAgent) and run.resolved.spec.name == agent:
                return run
        raise RunNotFound(f"there is no run of {agent!r}")


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


Perdure = Callable[..., Said]


@pytest.fixture
def perdure(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Perdure:
    """`perdure graph WORDS`, where there are these runs."""

    def call(*words: str, runs: list[FakeRun] | None = None) -> Said:
        async def connect(self: Common) -> FakeClient:
            return FakeClient(runs or [])

        monkeypatch.setattr(Common, "connect", connect)
        monkeypatch.setattr("sys.argv", ["perdure", "graph", *words])
        code = cli.run()
        told = capfd.readouterr()
        return Said(code=code, out=told.out, err=told.err)

    return call


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The process that looks into files: one that knows "review" only. Gives the calls of it."""
    calls: list[list[str]] = []

    def load(asked: list[str], **_: Any) -> "subprocess.CompletedProcess[bytes]":
        calls.append(asked)
        known = asked[-1] == "review"
        printed = f"imported\n{REVIEW.model_dump_json()}\n".encode() if known else b""
        return subprocess.CompletedProcess(asked, 0 if known else 2, printed)

    monkeypatch.setattr(subprocess, "run", load)
    return calls


# -- where it comes from


def test_newest_run_is_drawn(perdure: Perdure) -> None:
    said = perdure("review", runs=[FakeRun("review-2"), FakeRun("review-1")])
    assert (said.code, said.err) == (0, "")
    assert said.out.splitlines() == [
        "graph review",
        "review-2 · acting",
        "",
        "▸ draft (entry)  agent     running",
        "    → publish [approved]",
        "○ publish        function  not yet run",
    ]


def test_the_run_asked_for_is_drawn(perdure: Perdure) -> None:
    older = FakeRun("review-1", looks=[status(DONE, status="completed")])
    said = perdure("review", "--run", "review-1", runs=[FakeRun("review-2"), older])
    assert "review-1 · completed" in said.out
    assert "✓ draft (entry)" in said.out


def test_waiting_node_shows_command(perdure: Perdure) -> None:
    """A waiting node is shown with the command that answers it."""
    want = Approval(
        call_id="call-1-1", tool="pay", arguments={"sum": 1}, digest="d", since=NOW, path=["draft-1"]
    )
    said = perdure("review", runs=[FakeRun("r", looks=[status(RUNNING, waiting=[want])])])
    assert "? draft (entry)  agent     waits for a person" in said.out
    assert "waits for: draft-1: pay(sum=1)\n  perdure approve r call-1-1" in said.out


@pytest.mark.parametrize(
    ("state", "told"), [("TERMINATED", "failed"), ("CANCELED", "cancelled"), ("TIMED_OUT", "failed")]
)
def test_silent_end_is_drawn_as_ended(perdure: Perdure, state: str, told: str) -> None:
    """A run that could not report its end is drawn as ended."""
    said = perdure("review", runs=[FakeRun("r", state=state)])
    assert f"r · {told}" in said.out
    assert "■ draft (entry)  agent     cancelled" in said.out
    assert "never ran" in said.out


def test_file_is_drawn_without_server(perdure: Perdure, loader: list[list[str]]) -> None:
    said = perdure("review", "--file", "desk.py")
    assert loader == [[sys.executable, "-m", "perdure.workers.load", "desk.py", "--spec", "review"]]
    assert said.code == 0
    assert said.out.splitlines()[3] == "    → publish [approved]"
    assert "not yet run" not in said.out


# -- where it goes


@pytest.mark.parametrize(
    ("words", "name", "begins"),
    [
        (("--mermaid",), "x.txt", "---\ntitle: "),
        ((), "x.mmd", "---\ntitle: "),
        ((), "x.MD", "```mermaid\n---\ntitle: "),
        ((), "x.txt", "graph review\n"),
    ],
)
def test_suffix_chooses_format(
    perdure: Perdure, tmp_path: Path, words: tuple[str, ...], name: str, begins: str
) -> None:
    """The suffix of a file chooses the format."""
    said = perdure("review", *words, "--out", str(tmp_path / name), runs=[FakeRun("r")])
    assert (said.code, said.out, said.err) == (0, "", f"wrote {tmp_path / name}\n")
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(begins)


@pytest.mark.parametrize("ending", ["svg", "PNG"])
def test_picture_file_is_rejected_with_advice(perdure: Perdure, tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"x.{ending}"
    said = perdure("review", "--out", str(path), runs=[FakeRun("r")])
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        f"error: --out {path}: pictures are written as Mermaid; choose a .mmd or .md file, which GitHub and "
        "the Mermaid tools draw\n"
    )
    assert not path.exists()


def test_mermaid_stdout_is_chart_alone(perdure: Perdure) -> None:
    said = perdure("review", "--mermaid", runs=[FakeRun("r")])
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith("---\n")


def test_documentation_shows_written_chart(perdure: Perdure) -> None:
    """The documentation shows the chart that the command writes."""
    said = perdure("review", "--file", str(ROOT / "examples" / "review_graph.py"), "--mermaid")
    assert said.out in (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")


def test_json_has_complete_spec_and_status(perdure: Perdure) -> None:
    """JSON output has the complete spec and status."""
    given = json.loads(perdure("review", "--json", runs=[FakeRun("r")]).out)
    assert given["run"] == "r"
    assert ResolvedAgent.model_validate(given["resolved"]) == REVIEW
    assert RunStatus.model_validate(given["status"]) == status(RUNNING)


def test_watching_survives_missing_worker(perdure: Perdure, monkeypatch: pytest.MonkeyPatch) -> None:
    """Watching draws until the run is over, and survives the loss of a worker."""
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setattr(graph, "_REDRAWN_EVERY", timedelta())
    looks: list[RunStatus | Exception] = [status(RUNNING)]
    looks += [NotReachable("no worker answers"), status(DONE, status="completed")]
    said = perdure("review", "--watch", runs=[FakeRun("r", looks=looks)])
    assert said.code == 0
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", said.out)
    assert "▸ draft (entry)  agent     running" in shown
    assert "\nno worker answers" in shown
    assert shown.rstrip().endswith("○ publish        function  never ran")


# -- what it refuses


def test_name_without_runs_has_advice(perdure: Perdure) -> None:
    said = perdure("nobody", runs=[FakeRun("r")])
    assert (said.code, said.out) == (2, "")
    assert said.err == (
        "error: there is no run of 'nobody'; draw it from its file: perdure graph nobody --file FILE, "
        "or look for another run: perdure list\n"
    )


def test_unknown_run_is_rejected(perdure: Perdure) -> None:
    """A run that does not exist, or has another name, is rejected."""
    assert perdure("review", "--run", "gone").err == "error: there is no run 'gone'\n"
    said = perdure("desk", "--run", "r", runs=[FakeRun("r")])
    assert (said.code, said.err) == (2, "error: run 'r' is a run of 'review', not of 'desk'\n")


def test_missing_name_has_loader_code(perdure: Perdure, loader: list[list[str]]) -> None:
    """A file without that name ends with the loader's exit code."""
    said = perdure("nobody", "--file", "desk.py")
    assert (said.code, said.out) == (2, "")
    assert len(loader) == 1


def test_missing_file_has_loader_error(perdure: Perdure) -> None:
    """The loader reports a missing file."""
    said = perdure("review", "--file", "nosuch.py")
    assert (said.code, said.out) == (2, "")
    assert "error: " in said.err


def test_missing_worker_has_code(perdure: Perdure) -> None:
    """Without a worker the exit code says so."""
    said = perdure("review", "--run", "r", runs=[FakeRun("r", looks=[NotReachable("no worker answered")])])
    assert (said.code, said.err) == (5, "error: no worker answered\n")


def test_missing_server_has_code(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a server the exit code says so."""
    monkeypatch.setattr("sys.argv", ["perdure", "graph", "review", "--address", "127.0.0.1:1"])
    assert cli.run() == 5
    told = capsys.readouterr()
    assert (told.out, told.err.count("\n")) == ("", 1)
    assert told.err.startswith("error: ")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--run", "r", "--file", "x.py"), "give only one of them"),
        (("--watch", "--file", "x.py"), "leave out --file"),
        (("--watch", "--mermaid"), "leave out --file"),
        (("--watch", "--out", "x.txt"), "leave out --file"),
        (("--watch", "--json"), "leave out --file"),
        (("--watch",), "--watch needs a terminal"),
    ],
)
def test_contradicting_options_are_rejected(perdure: Perdure, words: tuple[str, ...], said: str) -> None:
    told = perdure("review", *words, runs=[FakeRun("r")])
    assert (told.code, told.out, told.err.count("\n")) == (2, "", 1)
    assert said in told.err


def test_unwritable_place_is_rejected(perdure: Perdure, tmp_path: Path) -> None:
    said = perdure("review", "--out", str(tmp_path / "no" / "x.mmd"), runs=[FakeRun("r")])
    assert said.code == 2
    assert said.err == f"error: --out {tmp_path / 'no' / 'x.mmd'}: No such file or directory\n"
