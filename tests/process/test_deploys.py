"""Deploys under running agents: two builds as real processes, and the commands a person gives."""

import asyncio
import json
import signal
import time
import urllib.error
import urllib.request
import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from perdure import connect
from perdure.starter.cli import app as cli
from perdure.starter.client.connect import Client
from perdure.starter.client.deployment import Build, Deployment
from perdure.starter.client.run import Run
from perdure.starter.client.session import Session
from perdure.workers.dev.server import DevServer, free_port
from tests.conftest import HANGS, until, until_status
from tests.waiting import wait_for

from .shell import Background, Said, Shell

DESK = '''
import asyncio
import os
import pathlib
import time
from datetime import timedelta

from perdure import Agent, ToolContext, tool
from perdure.graph import Edge, Graph, Node
from perdure.model import Reply, TextDelta, UsageSoFar
from perdure.messages import Text, Usage
from perdure.testing import ScriptedModel, calls, says

BUILD = os.environ["DESK_BUILD"]
MARKS = pathlib.Path(os.environ["DESK_MARKS"])
"""What has begun leaves a file here."""
RULE = os.environ.get("DESK_RULE", "one")


@tool(approval=True, effect="write")
async def refund(order: str) -> str:
    """Pay an order back."""
    return f"paid by {BUILD}"


@tool
async def look() -> str:
    """Look."""
    return f"seen by {BUILD}"


def once(name):
    """Whether this is the first time."""
    try:
        (MARKS / name).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@tool(heartbeat=timedelta(seconds=30), timeout=timedelta(minutes=5))
async def wait(context: ToolContext) -> str:
    """Take for ever, the first time."""
    if once(f"tool-{context.run_id}"):
        await asyncio.sleep(300)
    return f"attempt {context.attempt}"


@tool(heartbeat=timedelta(seconds=30), timeout=timedelta(minutes=5))
def block(context: ToolContext) -> str:
    """As `wait`, in a thread that nothing can stop."""
    if once(f"thread-{context.run_id}"):
        time.sleep(300)
    return f"attempt {context.attempt}"


@tool(heartbeat=timedelta(seconds=60), timeout=timedelta(minutes=5))
async def cling(context: ToolContext) -> str:
    """Whatever one says."""
    once(f"cling-{context.run_id}")
    while True:
        try:
            await asyncio.sleep(300)
        except asyncio.CancelledError:
            pass


class Slow:
    """A provider that never comes to an end, the first time. It has been paid by then."""

    def check(self, config):
        pass

    async def stream(self, request):
        yield UsageSoFar(usage=Usage(input_tokens=1000, output_tokens=1))
        yield TextDelta(text="on my way ")
        if once(f"model-{request.user}"):
            await asyncio.sleep(300)
        usage = Usage(input_tokens=1000, output_tokens=5)
        yield Reply(parts=(Text(text="there"),), stop="end_turn", usage=usage)


def answer(tool):
    def script(request):
        if request.messages[-1].role == "user":
            return calls(tool, order="1") if tool == "refund" else calls(tool)
        last = request.messages[-1].parts[-1].content[0].text
        return says(f"{request.instructions} {last}")

    return ScriptedModel(script)


def agent(name, **more):
    return Agent(name=name, instructions=f"As {BUILD} says.", **more)


def is_urgent(state):
    return RULE == "one"


def is_calm(state):
    return not is_urgent(state)


async def now(given):
    return "now"


async def later(given):
    return "later"


clerk = agent("clerk", model="refund:x", tools=[refund])
chatter = agent("chatter", model="look:x", tools=[look])
waiter = agent("waiter", model="wait:x", tools=[wait])
blocker = agent("blocker", model="block:x", tools=[block])
clinger = agent("clinger", model="cling:x", tools=[cling])
slow = agent("slow", model="slow:x")
boss = agent("boss", model="boss:x", tools=[clerk.as_tool(description="Pays back.")])
urgency = Graph(
    name="urgency",
    nodes={
        "sort": agent("sorter", model="sort:x"),
        "now": now,
        "later": later,
        "pay": Node(clerk, join="any"),
    },
    edges=[
        Edge("sort", "now", is_urgent),
        Edge("sort", "later", is_calm),
        *((name, "pay") for name in ("now", "later")),
    ],
    entry="sort",
)
models = {
    **{name: answer(name) for name in ("refund", "look", "wait", "block", "cling")},
    "slow": Slow(),
    "sort": ScriptedModel(lambda request: says("sorted")),
    "boss": ScriptedModel(
        lambda request: says("done") if request.step > 1 else calls("clerk", input="go")
    ),
}
'''
FILE = "desk.py"


@dataclass
class Floor:
    """A deployment on the session's server: builds as processes, each with a file of its own."""

    folder: Path
    server: DevServer
    name: str = field(default_factory=lambda: f"desk-{uuid.uuid4().hex[:6]}")
    shells: list[Shell] = field(default_factory=list[Shell])

    def shell(self, build: str, **variables: str) -> Shell:
        """Where that build is at home."""
        folder = self.folder / f"{build}-{len(self.shells)}"
        folder.mkdir()
        marks = self.folder / "marks"
        marks.mkdir(exist_ok=True)
        settings = {
            "PERDURE_ADDRESS": self.server.address,
            "PERDURE_TASK_QUEUE": self.name,
            "PERDURE_BLOB_STORE": f"file:{self.folder}/blobs",
            "PERDURE_DEPLOYMENT_NAME": self.name,
            "DESK_BUILD": build,
            "DESK_MARKS": str(marks),
        }
        made = Shell(folder, {**settings, **variables})
        made.write(FILE, DESK)
        self.shells.append(made)
        return made

    def worker(self, build: str, **variables: str) -> Background:
        """A worker of that build; it works once this returns."""
        begun = self.shell(build, **variables).start("worker", FILE, "--build", build)
        begun.says("ready: ")
        return begun

    def deploy(self, *words: str, code: int = 0) -> Said:
        """`perdure deploy WORDS`, as anybody on the floor would say it."""
        said = self.shells[0].perdure("deploy", *words)
        assert said.code == code, said
        return said

    async def builds(self) -> dict[str, Build]:
        """What `perdure deploy status` says of each build, without what a process costs."""
        temporal = (await self.client()).temporal
        status = await Deployment(temporal, self.name, task_queue=self.name).status()
        return {one.build: one for one in status.builds}

    async def until_left(self, build: str) -> None:
        """Wait until nobody is pinned to that build."""

        async def empty() -> bool:
            left = (await self.builds())[build]
            return not left.runs and not left.sessions

        await until(empty)

    async def client(self) -> Client:
        return await connect(self.server.address, task_queue=self.name)


@pytest.fixture
def floor(tmp_path: Path, server: DevServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Floor]:
    monkeypatch.setenv("PERDURE_BLOB_STORE", f"file:{tmp_path}/blobs")
    made = Floor(tmp_path, server)
    yield made
    for shell in made.shells:
        shell.close()


async def begun(client: Client, agent: str, count: int, prefix: str) -> list[Run]:
    """So many runs, all of them waiting for an approval."""
    runs = await asyncio.gather(*(client.start(agent, "go", id=f"{prefix}-{n}") for n in range(count)))
    for run in runs:
        await until_status(client, run.id, "waiting_approval")
    return list(runs)


async def finished(runs: list[Run]) -> Counter[str]:
    """What they say once all their calls are allowed."""
    for run in runs:
        [want] = (await run.status()).waiting
        assert want.kind == "approval"
        await run.resolve_approval(want.call_id, allow=True, digest=want.digest)
    results = await asyncio.gather(*(run.result() for run in runs))
    return Counter(str(result.output) for result in results)


async def test_runs_keep_their_build(floor: Floor) -> None:
    first = floor.worker("b1")
    first.says("no version of its deployment is current yet; to make it current: perdure deploy promote b1")
    assert "(before: workers without a version)" in floor.deploy("promote", "b1").out
    client = await floor.client()
    fifty = await begun(client, "clerk", 50, f"{floor.name}-old")

    floor.worker("b2").says("new runs go to build 'b1'")
    assert (await floor.builds())["b1"].runs == 50
    floor.deploy("ramp", "b2", "50")
    mixed = await begun(client, "clerk", 30, f"{floor.name}-mixed")
    ramped = await floor.builds()
    shown = {one["build"]: one for one in floor.deploy("status", "--json").json["builds"]}
    assert shown["b2"] == ramped["b2"].model_dump(mode="json")
    assert ramped["b2"].percent == 50
    assert ramped["b2"].runs > 0, "new runs are distributed"
    assert ramped["b1"].runs > 50
    assert ramped["b1"].runs + ramped["b2"].runs == 80

    assert "the ramp of 'b2' has ended" in floor.deploy("rollback").out
    after = await begun(client, "clerk", 5, f"{floor.name}-after")
    assert (await floor.builds())["b1"].runs == ramped["b1"].runs + 5

    floor.deploy("promote", "b2")
    assert await finished(fifty) == {"As b1 says. paid by b1": 50}, "none lost, none changed"
    assert await finished(after) == {"As b1 says. paid by b1": 5}
    assert await finished(mixed) == {
        "As b1 says. paid by b1": ramped["b1"].runs - 50,
        "As b2 says. paid by b2": ramped["b2"].runs,
    }
    await floor.until_left("b1")
    assert (await floor.builds())["b1"].status == "draining"
    undone = floor.deploy("rollback", "--json").json
    assert (undone["build"], undone["current"]) == ("b2", "b1")
    assert "rolled back already" in floor.deploy("rollback", code=2).err
    assert (await floor.builds())["b1"].status == "current", "the bad build does not come back"


async def test_children_keep_parents_build(floor: Floor) -> None:
    old = floor.worker("b1")
    floor.deploy("promote", "b1")
    client = await floor.client()
    [bosses] = await begun(client, "boss", 1, f"{floor.name}-boss")
    [stuck] = await begun(client, "clerk", 1, f"{floor.name}-stuck")
    floor.worker("b2")
    floor.deploy("promote", "b2")
    assert (await floor.builds())["b1"].runs == 3, "a child run is pinned as its parent is"

    old.interrupt(signal.SIGTERM)
    would = floor.deploy("move", "--from", "b1", "--to", "b2", "--dry-run")
    assert len(would.out.splitlines()) == 3
    only = floor.deploy(
        *("move", "--from", "b1", "--to", "b2", "--query", f'WorkflowId = "{stuck.id}"', "--json")
    )
    assert only.json == {"from": "b1", "to": "b2", "moved": 1, "failed": []}
    assert await finished([stuck]) == {"As b1 says. paid by b2": 1}, "its prompt stays, the code is new"
    assert "2 runs, 0 sessions" in floor.deploy("move", "--from", "b1", "--to", "b2").out
    await floor.until_left("b1")
    assert await finished([bosses]) == {"done": 1}


async def talked(session: Session, text: str) -> str:
    return (await session.say(text, id=text)).text


async def test_sessions_change_build_between_turns(floor: Floor) -> None:
    floor.worker("b1")
    floor.deploy("promote", "b1")
    client = await floor.client()
    names = [f"{floor.name}-{n}" for n in range(6)]
    sessions = [await client.session(name, agent="chatter") for name in names]
    for session in sessions:
        assert await talked(session, "one") == "As b1 says. seen by b1"

    floor.worker("b2")
    floor.deploy("promote", "b2")
    spoken, *quiet = sessions
    assert await talked(spoken, "two") == "As b1 says. seen by b2", "it moved before the turn"
    assert (await floor.builds())["b2"].sessions == 1
    assert (await floor.builds())["b1"].sessions == 5

    drained = floor.deploy("drain", "b1", "--json").json
    assert drained == {"build": "b1", "woken": 5, "sessions": 0, "runs": 0}
    for session in quiet:
        assert await talked(session, "two") == "As b1 says. seen by b2"
        said = [message.text for message in await session.transcript() if message.role == "user"]
        assert said == ["one", "two"]
    refused = floor.deploy("drain", "b2", code=2)
    assert "'b2' is current" in refused.err

    floor.deploy("rollback")
    assert await talked(spoken, "three") == "As b1 says. seen by b1", "and back"
    assert [reply.turn for reply in [await spoken.say("three", id="three")]] == [3]


def test_impossible_deploys_are_refused(
    floor: Floor, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    shell = floor.shell("b1")
    for name, value in shell.environment.items():
        monkeypatch.setenv(name, value)

    def here(*words: str) -> Said:
        """`perdure WORDS` within this process: the same without what a process costs."""
        monkeypatch.setattr("sys.argv", ["perdure", *words])
        capfd.readouterr()
        code = cli.run()
        told = capfd.readouterr()
        return Said(code=code, out=told.out, err=" ".join(told.err.split()))

    none = here("deploy", "status")
    assert none.code == 2
    assert f"there is no deployment {floor.name!r}" in none.err
    assert f"perdure worker FILE --deployment {floor.name} --build BUILD" in none.err
    floor.worker("b1")
    for words, why in (
        (("promote", "b9"), "has no build 'b9': no worker of it has polled yet; there are b1"),
        (("promote",), "name the build: perdure deploy promote BUILD, or --unversioned"),
        (("promote", "--unversioned"), "no worker without a version polls task queue"),
        (("ramp", "b1", "120"), "120 is no share of new runs"),
        (("ramp", "b1", "many"), "Invalid value for"),
        (("rollback",), "nothing to roll back"),
        (("move", "--from", "b1", "--to", "b9"), "has no build 'b9'"),
        (("move", "--from", "b1", "--to", "b1"), "both builds are 'b1'"),
        (("move", "--from", "b9", "--to", "b1"), "has no build 'b9'"),
        (("move", "--from", "b1", "--to", "b1", "--query", "x"), "both builds are 'b1'"),
        (("drain", "b9"), "has no build 'b9'"),
        (("status", "--deployment", "b.9"), "cannot contain '.'"),
    ):
        said = here("deploy", *words)
        assert (said.code, why in said.err) == (2, True), (words, said)
    assert "no build is current" in here("deploy", "status").err
    assert here("run", "clerk", "go").code == 5, "a worker there is, but it takes no new runs"
    monkeypatch.setenv("DESK_BUILD", "x")
    doctor = shell.perdure("doctor")
    assert f"new runs go to workers without a version, and only {floor.name}:b1 poll" in doctor.out
    nameless = Shell(shell.folder, {**shell.variables, "PERDURE_DEPLOYMENT_NAME": ""})
    for words, why in (
        (("--build", "x"), "a build id belongs to a deployment: set PERDURE_DEPLOYMENT_NAME too"),
        (("--deployment", "x"), "a worker deployment needs a build id too: --build, PERDURE_BUILD_ID"),
    ):
        refused = nameless.perdure("worker", FILE, *words)
        assert (refused.code, why in refused.err) == (2, True), refused


async def test_temporal_variables_name_version(floor: Floor) -> None:
    """Its Kubernetes controller sets these."""
    names = {"TEMPORAL_DEPLOYMENT_NAME": floor.name, "TEMPORAL_WORKER_BUILD_ID": "by-controller"}
    shell = floor.shell("x", PERDURE_DEPLOYMENT_NAME="", **names)
    begun = shell.start("worker", FILE)
    begun.says(f"version {floor.name}:by-controller")
    assert (await floor.builds())["by-controller"].workers == 1


# -- the end of a worker


GRACE = {"PERDURE_GRACEFUL_SHUTDOWN_TIMEOUT": "2s"}


def answers(port: int, path: str) -> int:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        with error:
            return int(error.code)


async def test_stopped_worker_hands_over_calls(floor: Floor) -> None:
    port = free_port()
    old = floor.worker("b1", PERDURE_HEALTH_ADDRESS=f"127.0.0.1:{port}", **GRACE)
    floor.deploy("promote", "b1")
    client = await floor.client()
    runs = [
        await client.start(agent, "go", id=f"{floor.name}-{agent}", user=floor.name)
        for agent in ("waiter", "blocker", "slow")
    ]
    marks = floor.folder / "marks"
    await asyncio.to_thread(wait_for, lambda: len(list(marks.iterdir())) == 3, "all three calls")
    assert answers(port, "/ready") == 200
    told = time.monotonic()
    old.process.send_signal(signal.SIGTERM)
    wait_for(lambda: answers(port, "/ready") == 503, "not ready")
    assert answers(port, "/live") == 200, "nobody is to kill it meanwhile"
    floor.worker("b1", **GRACE)
    assert await asyncio.to_thread(old.process.wait, 30) == 0
    assert time.monotonic() - told < 20, "well within a container's grace"
    async with asyncio.timeout(HANGS):
        waited, blocked, answered = [await run.result() for run in runs]
    assert time.monotonic() - told < 28, "though heartbeats are missed only after 30 seconds"
    assert waited.output == "As b1 says. attempt 2"
    assert blocked.output == "As b1 says. attempt 2"
    assert answered.output == "there"
    assert answered.usage.input_tokens == 2000, "the call that was cut has been paid for too"


async def test_uncancellable_call_keeps_no_worker(floor: Floor) -> None:
    old = floor.worker("b1", PERDURE_GRACEFUL_SHUTDOWN_TIMEOUT="0s")
    floor.deploy("promote", "b1")
    client = await floor.client()
    await client.start("clinger", "go", id=f"{floor.name}-clinger")
    marks = floor.folder / "marks"
    await asyncio.to_thread(wait_for, lambda: list(marks.iterdir()), "the call")
    told = time.monotonic()
    assert await asyncio.to_thread(old.interrupt, signal.SIGTERM) == 1
    assert time.monotonic() - told < 20
    assert "exiting with calls that neither end nor can be cancelled" in old.said


# -- the gate


async def test_gate_stops_changed_build(floor: Floor) -> None:
    floor.worker("b1")
    floor.deploy("promote", "b1")
    client = await floor.client()
    await begun(client, "clerk", 3, f"{floor.name}-clerk")
    await begun(client, "urgency", 2, f"{floor.name}-urgency")
    session = await client.session(f"{floor.name}-session", agent="chatter")
    await talked(session, "one")

    same = floor.shell("b2")
    passed = same.perdure("replay-check", FILE, "--record", "kept")
    assert passed.code == 0, passed
    # Three runs, two graphs with a node each that waits and one that is over, and the session.
    assert "replayed 8 histories: 8 ok" in passed.err
    kept = Shell(same.folder, {**same.variables, "PERDURE_BLOB_STORE": f"file:{floor.folder}/none"})
    assert kept.perdure("replay-check", FILE, "--histories", "kept").code == 0

    other = floor.shell("b3", DESK_RULE="two")
    stopped = other.perdure("replay-check", FILE, "--json")
    assert stopped.code == 1
    told = stopped.json
    assert told["counts"] == {"ok": 6, "nondeterministic": 2}
    wrong = [one for one in told["histories"] if one["verdict"] != "ok"]
    assert {one["agent"] for one in wrong} == {"urgency"}
    for one in wrong:
        assert 'the run asked for call_node(graph="urgency", node="now"' in one["text"]
        assert 'this code asks for call_node(graph="urgency", node="later"' in one["text"]
        assert one["event"] > 0
    assert "another name for a graph whose conditions have changed" in stopped.err
    limited = other.perdure("replay-check", FILE, "--query", 'AgentName = "clerk"', "--limit", "2", "--json")
    assert (limited.code, json.loads(limited.out)["counts"]) == (0, {"ok": 2})
