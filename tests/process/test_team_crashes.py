"""`kill -9` of the worker under swarms, graphs and a debate: each ends right, and nothing is done twice."""

import asyncio
import os
import random
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from perdure import NotReachable, Session, TurnReply, connect
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.wire.results import RunResult
from perdure.workers.load import load_file
from tests.conftest import until

from .conftest import Crew
from .teams import CALLS_OF_DEBATE, CALLS_OF_GRAPH, CALLS_OF_SWARM

CREW = "tests.process.teams"
SWARM = [("plan-1", "handoff"), ("do-1", "handoff"), ("check-1", "end_turn")]
GRAPH = Counter({f"{name}-{visit}": 1 for name in ("draft", "book", "bill", "review") for visit in (1, 2)})
GRAPH.update(["team-1", "ship-1"])
DEBATE = Counter(["pro-1", "pro-2", "con-1", "con-2", "verdict-1"])
MODEL_CALLS = {"swarm": CALLS_OF_SWARM, "graph": CALLS_OF_GRAPH, "debate": CALLS_OF_DEBATE}
EFFECTS = {
    "debate": Counter(charge=5),
    "swarm": Counter(charge=3),
    "graph": Counter(charge=5, book=2, bill=2, ship=1),
}


async def _steps(client: Client, run_id: str, result: RunResult) -> list[int]:
    """Tokens of each model call, of all runs below."""
    tokens: list[int] = []
    for node in result.nodes:
        if node.kind == "agent":
            tokens += [step.usage.total_tokens for step in await client.get(f"{run_id}/~{node.key}").steps()]
        elif node.kind == "swarm":
            below = f"{run_id}/~{node.key}"
            tokens += await _steps(client, below, await client.get(below).result())
    return tokens


def _check_shape(kind: str, result: RunResult) -> None:
    assert (result.agent, result.stop_reason, result.error) == (kind, "end_turn", None)
    assert {node.state for node in result.nodes} == {"done"}
    if kind == "swarm":
        assert [(node.key, node.stop_reason) for node in result.nodes] == SWARM
        assert result.output == "all checked"
        assert result.shared_context == {"plan": {"saw": "do"}, "do": {"saw": "check"}}
    elif kind == "debate":
        assert Counter(node.key for node in result.nodes) == DEBATE
        assert result.output == "maybe"
    else:
        assert Counter(node.key for node in result.nodes) == GRAPH
        assert result.nodes[-1].node == "ship"
        assert result.output["from"] == ["team"]
        assert "From team:\nall checked" in result.output["prompt"]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [int(seed) for seed in os.environ.get("TEAM_SEEDS", "4711").split()])
async def test_teams_survive_random_kills(workers: Crew, settings: Settings, seed: int) -> None:
    """Swarms, graphs and debates survive kills at random moments."""
    # Strands B1-17: a crash inside a node of a graph or swarm loses that node.
    moments = random.Random(seed)
    client = await connect(settings=settings)
    runs: list[tuple[str, str, Run]] = []
    for number in range(18):
        kind = ("swarm", "graph", "debate")[number % 3]
        runs.append((kind, f"user-{number}", await client.start(kind, "go", user=f"user-{number}")))
    for _ in range(3):
        target = len(workers.happened()) + moments.randint(15, 60)

        async def far_enough(target: int = target) -> bool:
            return len(workers.happened()) >= target

        await until(far_enough, within=60)
        workers.kill()
        workers.start()
    async with asyncio.timeout(120):
        results = await asyncio.gather(*(run.result() for _, _, run in runs))
    tried: dict[str, Counter[tuple[str, str]]] = {user: Counter() for _, user, _ in runs}
    for what, user, key in workers.happened():
        tried[user][what, key] += what != "model"
    for (kind, user, run), result in zip(runs, results, strict=True):
        _check_shape(kind, result)
        effects = Counter(what for who, what in workers.effects() if who == user)
        keys = Counter(what for what, _ in tried[user] if what != "model")
        assert effects == keys == EFFECTS[kind], f"each effect under one key, of seed {seed}: {run.id}"
        tokens = await _steps(client, run.id, result)
        assert len(tokens) == result.steps == MODEL_CALLS[kind]
        assert result.usage.total_tokens == sum(node.usage.total_tokens for node in result.nodes)
        assert result.usage.total_tokens >= sum(tokens), "and what was wasted by calls that were cut"
        assert result.tool_calls == EFFECTS[kind]["charge"]
    attempts = [count for counts in tried.values() for (what, _), count in counts.items() if what != "model"]
    assert max(attempts) > 1, "the kills did hit effects at work"


async def _say_until_accepted(session: Session, text: str) -> TurnReply:
    """Say it again under the same id while no worker is there to take it, as a caller would."""
    while True:
        with suppress(NotReachable):
            return await session.say(text, id=text)


@pytest.mark.parametrize("kind", ["swarm", "graph"])
async def test_team_session_survives_kills_in_turn(workers: Crew, settings: Settings, kind: str) -> None:
    """A session of a team loses nothing and repeats nothing when its worker is killed in mid-turn."""
    client = await connect(settings=settings)
    session = await client.session(f"outliving-{kind}", agent=kind, user="ann")
    texts = [f"job {n}" for n in range(3)]
    replies: list[TurnReply] = []
    keys: list[str] = []

    async def converse() -> None:
        for text in texts:
            replies.append(await _say_until_accepted(session, text))
            keys.extend(node.key for node in (await session.status()).nodes)

    charges = EFFECTS[kind]["charge"]
    async with asyncio.TaskGroup() as group:
        group.create_task(converse())
        for turn in (0, 1):

            async def in_mid_turn(turn: int = turn) -> bool:
                return len(set(workers.happened("charge"))) > charges * turn + 1

            await until(in_mid_turn)
            workers.kill()
            workers.start()
    again = await session.say(texts[0], id=texts[0])
    transcript = await session.transcript()
    assert again == replies[0]
    assert [(reply.turn, reply.stop_reason) for reply in replies] == [(n, "end_turn") for n in (1, 2, 3)]
    effects = Counter(what for _, what in workers.effects())
    assert effects == {what: 3 * count for what, count in EFFECTS[kind].items()}
    tried = {(what, key) for what, _, key in workers.happened() if what != "model"}
    assert len(tried) == effects.total(), "each effect under one key"
    assert {reply.tool_calls for reply in replies} == {charges}
    assert {reply.steps for reply in replies} == {CALLS_OF_SWARM if kind == "swarm" else CALLS_OF_GRAPH}
    assert len(set(keys)) == len(keys) == 3 * (len(SWARM) if kind == "swarm" else GRAPH.total())
    assert [message.text for message in transcript if message.role == "user"] == texts


@pytest.mark.parametrize("kind", ["Swarm", "Graph"])
def test_worker_serves_teams_of_file(tmp_path: Path, kind: str) -> None:
    """A worker serves the swarms and graphs of a file."""
    path = tmp_path / f"{kind.lower()}_file.py"
    made = (
        'team = Swarm(name="team", agents=[Agent(name="a", model="scripted:a")])'
        if kind == "Swarm"
        else 'team = Graph(name="team", nodes={"a": Agent(name="a", model="scripted:a")}, entry="a")'
    )
    path.write_text(f"from perdure import Agent, Graph, Swarm\n{made}\n")
    assert [one.name for one in load_file(str(path)).agents] == ["team"]
