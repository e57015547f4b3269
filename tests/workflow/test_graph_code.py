"""Conditions and input builders run in the workflow: what is not deterministic in them is an error."""

import asyncio
import datetime as dt
import functools
import json
import math
import os
import random
import re
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime as moment
from enum import Enum
from functools import partial
from pathlib import Path
from random import random as chance
from time import time as clock
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import (
    ExecuteWorkflowInput,
    Interceptor,
    Replayer,
    StartActivityInput,
    StartChildWorkflowInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from perdure import Agent, PerdurePlugin, RunFailed
from perdure.graph import Edge, Graph, GraphState, Node, NodeInput
from perdure.limits import GraphLimits
from perdure.settings import load_settings
from perdure.testing import ScriptedModel, says
from perdure.wire.results import NodeResult, RunResult
from tests.conftest import HANGS, Serve

from .test_swarm_runs import ServeTeam

ROOT = Path(__file__).parents[2]
BOUND = 3
WORDS = {"urgent": True, "later": False}
PATTERN = re.compile(r"\burgent\b")


class Level(Enum):
    LOW = 1
    HIGH = 2


@pytest.fixture(params=["warm", pytest.param("cold", marks=pytest.mark.cold)])
def serve(serve: Serve, request: pytest.FixtureRequest) -> ServeTeam:
    """Cold: each workflow task replays the whole history, so what is not deterministic fails."""
    cold: dict[str, Any] = {} if request.param == "warm" else {"worker": {"max_cached_workflows": 0}}
    return partial(serve, **cold)


async def work(given: NodeInput) -> str:
    return f"{given.node} {given.visit}"


def choosing(when: Callable[[GraphState], bool]) -> Graph:
    """Goes from a to b when the condition says so."""
    return Graph(name="graph", nodes={"a": work, "b": work}, edges=[Edge("a", "b", when)], entry="a")


# -- what must not be asked


def by_random(state: GraphState) -> bool:
    return random.random() < 2


def by_random_choice(state: GraphState) -> bool:
    return random.choice([1, 2]) > 0


def by_imported_random(state: GraphState) -> bool:
    return chance() < 2


def by_secrets(state: GraphState) -> bool:
    return bool(secrets.token_hex(4))


def by_now(state: GraphState) -> bool:
    return dt.datetime.now(dt.UTC).year > 2000


def by_imported_now(state: GraphState) -> bool:
    return moment.now(dt.UTC).year > 2000


def by_today(state: GraphState) -> bool:
    return dt.date.today().year > 2000  # noqa: DTZ011 - what a user may write


def by_time(state: GraphState) -> bool:
    return time.time() > 0


def by_monotonic(state: GraphState) -> bool:
    return time.monotonic() > 0


def by_imported_time(state: GraphState) -> bool:
    return clock() > 0


def by_file(state: GraphState) -> bool:
    with open(__file__) as file:  # noqa: PTH123 - what a user may write
        return bool(file.read())


def by_path(state: GraphState) -> bool:
    return Path(__file__).exists()


def by_environment(state: GraphState) -> bool:
    return os.environ.get("HOME") is not None


def by_uuid(state: GraphState) -> bool:
    return bool(uuid.uuid4())


def by_sleep(state: GraphState) -> bool:
    time.sleep(0.001)
    return True


def by_inner_import(state: GraphState) -> bool:
    import random as inner

    return inner.random() < 2


def by_lookup(state: GraphState) -> bool:
    return bool(sys.modules["random"].random() < 2)


def _helper() -> float:
    return random.random()


def by_helper(state: GraphState) -> bool:
    return _helper() < 2


def by_inner_function(state: GraphState) -> bool:
    return all(random.random() < 2 for _ in range(3))


def _closed(ask: Callable[[], float]) -> Callable[[GraphState], bool]:
    def condition(state: GraphState) -> bool:
        return ask() < 2

    return condition


def _logged(function: Callable[[GraphState], bool]) -> Callable[[GraphState], bool]:
    @functools.wraps(function)
    def wrapper(state: GraphState) -> bool:
        return function(state)

    return wrapper


@_logged
def by_decorated(state: GraphState) -> bool:
    return random.random() < 2


def by_default(state: GraphState, ask: Callable[[], float] = _helper) -> bool:
    return ask() < 2


@dataclass(frozen=True)
class Chance:
    """A condition that is an object."""

    below: float

    def __call__(self, state: GraphState) -> bool:
        return random.random() < self.below

    def method(self, state: GraphState) -> bool:
        return random.random() < self.below

    @staticmethod
    def static(state: GraphState) -> bool:
        return random.random() < 2


def _below(most: float, state: GraphState) -> bool:
    return random.random() < most


_LAMBDA: Callable[[GraphState], bool] = lambda state: random.random() < 2  # noqa: E731 - as a user writes it

FORBIDDEN: list[Any] = [
    by_random,
    by_random_choice,
    by_imported_random,
    by_secrets,
    by_now,
    by_imported_now,
    by_today,
    by_time,
    by_monotonic,
    by_imported_time,
    by_file,
    by_path,
    by_environment,
    by_uuid,
    by_sleep,
    by_inner_import,
    by_lookup,
    by_helper,
    by_inner_function,
    pytest.param(_LAMBDA, id="lambda"),
    pytest.param(_closed(_helper), id="a helper in a closure"),
    pytest.param(_closed(random.random), id="a library's function in a closure"),
    pytest.param(by_decorated, id="decorated"),
    pytest.param(by_default, id="a helper as a default"),
    pytest.param(Chance(2), id="an object"),
    pytest.param(Chance(2).method, id="a method"),
    pytest.param(Chance.static, id="a static method"),
    pytest.param(functools.partial(_below, 2), id="a partial"),
]


def _name(function: Any) -> str | None:
    return getattr(function, "__name__", None)


@pytest.mark.parametrize("condition", FORBIDDEN, ids=_name)
async def test_impure_condition_is_an_error(serve: ServeTeam, condition: Any) -> None:
    """A condition that asks the clock, chance or the machine is an error that says so."""
    async with serve(choosing(condition)) as client, asyncio.timeout(HANGS):
        run = await client.start("graph", "go")
        with pytest.raises(RunFailed) as failed:
            await run.result()
        assert not await run.is_stuck()
    assert failed.value.kind == "condition"
    assert "edge 'a' -> 'b' raised" in str(failed.value)
    assert re.search(r"(?i)restricted|cannot access|non-?deterministic|sandbox", str(failed.value)), str(
        failed.value
    )
    assert failed.value.result is not None
    assert [node.key for node in failed.value.result.nodes] == ["a-1"]


async def test_impure_input_builder_is_an_error(serve: ServeTeam) -> None:
    """An input builder that asks the clock is an error that says so."""

    def build(state: GraphState) -> str:
        return f"It is {time.time()}"

    made = Graph(name="graph", nodes={"a": Node(work, input=build)}, entry="a")
    async with serve(made) as client, asyncio.timeout(HANGS):
        with pytest.raises(RunFailed, match="the input 'build' of node 'a' raised") as failed:
            await client.run("graph", "go")
    assert failed.value.kind == "input"


async def test_node_function_may_be_impure(serve: ServeTeam) -> None:
    async def free(given: NodeInput) -> bool:
        return random.random() < 2 and time.time() > 0 and os.getpid() > 0

    async with serve(Graph(name="graph", nodes={"a": free}, entry="a")) as client:
        assert (await client.run("graph", "go")).output is True


# -- what may be used


def _urgent(text: str) -> bool:
    return PATTERN.search(text) is not None


def _more(text: str) -> bool:
    return _urgent(text) and _least(len(text))


def _least(length: int) -> bool:
    return length >= BOUND


def by_constants(state: GraphState) -> bool:
    return len(state.task) > BOUND and WORDS["urgent"] and Level.HIGH.value == 2


def by_helpers(state: GraphState) -> bool:
    return _more(state.task)


def by_libraries(state: GraphState) -> bool:
    found = json.loads('{"x": [1, 2, 3]}')
    return math.sqrt(4) == 2 and sum(found["x"]) == 6 and re.search("urg", state.task) is not None


def by_given_time(state: GraphState) -> bool:
    return dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(days=1) > moment(2026, 1, 1, tzinfo=dt.UTC)


def by_seeded_chance(state: GraphState) -> bool:
    return random.Random(4711).random() < 2


def by_uuid5(state: GraphState) -> bool:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, state.task)) != ""


def by_types(state: GraphState) -> bool:
    return state.results["a"] == NodeResult(**dict(state.results["a"])) and isinstance(state.output("a"), str)


def by_recursion(state: GraphState, depth: int = 3) -> bool:
    return depth == 0 or by_recursion(state, depth - 1)


def by_inner_json(state: GraphState) -> bool:
    import json as inner

    return bool(inner.loads("true"))


@dataclass(frozen=True)
class Longer:
    """A condition that is an object."""

    bound: int

    def __call__(self, state: GraphState) -> bool:
        return len(state.task) > self.bound

    def method(self, state: GraphState) -> bool:
        return self(state)


def _longer(bound: int, state: GraphState) -> bool:
    return len(state.task) > bound


@pytest.mark.parametrize(
    "condition",
    [
        by_constants,
        by_helpers,
        by_libraries,
        by_given_time,
        by_seeded_chance,
        by_uuid5,
        by_types,
        by_recursion,
        by_inner_json,
        pytest.param(_logged(by_helpers), id="decorated"),
        pytest.param(Longer(3), id="an object"),
        pytest.param(Longer(3).method, id="a method"),
        pytest.param(functools.partial(_longer, 3), id="a partial"),
    ],
    ids=_name,
)
async def test_pure_condition_may_use_helpers(serve: ServeTeam, condition: Any) -> None:
    """A pure condition may use constants, helpers and libraries."""
    async with serve(choosing(condition)) as client, asyncio.timeout(HANGS):
        assert (await client.run("graph", "an urgent task")).output == "b 1"


# -- replay


def _again(state: GraphState) -> bool:
    return state.visits["one"] < 3 and _urgent(state.task)


def _enough(state: GraphState) -> bool:
    return not _again(state)


def _brief(state: GraphState) -> str:
    known = {name: state.text(name) for name in ("left", "right", "one")}
    return f"Round {state.visits['join'] + 1} of {state.task}: {json.dumps(known)}"


def _agent(name: str) -> Agent:
    return Agent(name=f"agent-{name}", model=f"scripted:{name}")


REPLAYED = Graph(
    name="replayed",
    nodes={
        "one": _agent("one"),
        **{name: _agent(name) for name in ("left", "right", "up", "down")},
        "join": Node(_agent("join"), join=3, input=_brief),
        "last": work,
    },
    edges=[
        *(("one", name) for name in ("left", "right", "up", "down")),
        *((name, "join") for name in ("left", "right", "up", "down")),
        Edge("join", "one", _again),
        Edge("join", "last", _enough),
    ],
    entry="one",
    limits=GraphLimits(max_node_executions=50),
)

SEEN: list[Any] = []
"""What replayed code gave activities and children, and its result."""


class _Outbound(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> "workflow.ActivityHandle[Any]":  # noqa: A002
        SEEN.append(_plain(input.args))
        return super().start_activity(input)

    async def start_child_workflow(
        self,
        input: StartChildWorkflowInput,  # noqa: A002
    ) -> "workflow.ChildWorkflowHandle[Any, Any]":
        SEEN.append([input.id, *_plain(input.args)])
        return await super().start_child_workflow(input)


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        result = await super().execute_workflow(input)
        SEEN.append(_plain([result]))
        return result


class _Listening(Interceptor):
    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002
    ) -> type[WorkflowInboundInterceptor] | None:
        return _Inbound


def _plain(values: Any) -> list[Any]:
    from perdure.workers.converter import data_converter

    payloads = data_converter(None, 10**9).payload_converter.to_payloads(values)
    return [json.loads(payload.data) for payload in payloads]


async def replay(home: Path) -> list[Any]:
    """Replay the history in that folder, and give what the code asked for and gave."""
    [path] = sorted(home.glob("replayed-*.json"))  # noqa: ASYNC240 - nobody else waits
    plugin = PerdurePlugin([REPLAYED], settings=load_settings(home=home))
    SEEN.clear()
    history = WorkflowHistory.from_json(path.stem, path.read_text())
    replayer = Replayer(workflows=[], namespace="default", plugins=[plugin], interceptors=[_Listening()])
    outcome = await replayer.replay_workflow(history)
    assert outcome.replay_failure is None
    return SEEN


def replay_in_process(home: str) -> None:
    """For a process of its own: prints what `replay` gives."""
    sys.stdout.write(json.dumps(asyncio.run(replay(Path(home)))))
    sys.stdout.flush()
    os._exit(0)


def _under(seed: str, home: Path) -> list[Any]:
    code = f"from tests.workflow.test_graph_code import replay_in_process; replay_in_process({str(home)!r})"
    ended = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    seen: list[Any] = json.loads(ended.stdout)
    return seen


async def test_graph_replays_under_any_hash_seed(serve: ServeTeam, tmp_path: Path) -> None:
    """A graph replays to the same answers under any hash seed."""
    # Strands B2-6: a replay under another hash seed swapped the answers of two nodes, and no error.
    model = ScriptedModel(lambda request: says(f"{request.config.model}: {request.messages[-1].text[:40]}"))
    async with serve(REPLAYED, models={"scripted": model}) as client:
        run = await client.start("replayed", "an urgent task")
        result = await run.result()
        history = await run.handle.fetch_history()
    assert [node.key for node in result.nodes if node.node == "join"] == ["join-1", "join-2", "join-3"]
    (tmp_path / f"{run.id}.json").write_text(history.to_json())
    first, second, here = _under("0", tmp_path), _under("4711", tmp_path), await replay(tmp_path)
    assert first == second == here
    assert RunResult.model_validate(here[-1][0]) == result
    children = [
        event.start_child_workflow_execution_initiated_event_attributes
        for event in history.events
        if event.HasField("start_child_workflow_execution_initiated_event_attributes")
    ]
    recorded = [[one.workflow_id, *(json.loads(p.data) for p in one.input.payloads)] for one in children]
    assert [asked for asked in here if len(asked) == 3] == recorded
