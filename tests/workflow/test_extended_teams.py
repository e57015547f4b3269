"""Extended teams: what a limit has cut short below a swarm, a graph or a pattern goes on where it stood."""

import asyncio
from collections import defaultdict
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest

from perdure import (
    Agent,
    Graph,
    GraphLimits,
    InvalidRequest,
    Limits,
    Node,
    NodeInput,
    Swarm,
    SwarmLimits,
    ToolContext,
    tool,
)
from perdure.limits import PatternLimits
from perdure.members import Member
from perdure.messages import Usage
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, says
from tests.conftest import HANGS, Gate, Serve, check_rows
from tests.debates import load_debate

USED = Usage(input_tokens=1000, output_tokens=100)
WANTED = 4
"""Calls of `work` after which a worker is done."""


@dataclass
class Stage:
    """Everything that the teams do, by the run's user, which names the row."""

    keys: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    functions: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    asked: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    gates: dict[str, Gate] = field(default_factory=lambda: defaultdict(Gate))

    async def script(self, request: ModelRequest) -> Line:
        """Work until enough is done, then answer, or hand over where somebody can take over."""
        row, name = str(request.user), request.config.model
        self.asked[row] += 1
        if name == "slow" and request.step == 2:
            await self.gates[row].wait()
        results = [result for message in request.messages for result in message.tool_results]
        worked = sum(result.name == "work" and not result.is_error for result in results)
        if request.tool_choice == "none":
            return says(f"{name}: {worked} done, more wanted", usage=USED)
        if worked < WANTED and name != "closer":
            call = calls("work", n=worked)
            return Line(text=f"after {worked}", calls=call.calls, usage=USED)
        if name == "opener":
            handoff = calls("handoff_to_agent", agent_name="closer", message="go on")
            return Line(text="over to you", calls=handoff.calls, usage=USED)
        return says(f"{name}: all done", usage=USED)

    def worker(self, name: str, **settings: Any) -> Agent:
        """Return an agent that works."""

        @tool(effect="write")
        async def work(context: ToolContext, n: int) -> str:
            """Work."""
            self.keys[str(context.user)].append(context.idempotency_key)
            return f"worked {n}"

        tools = [] if name == "closer" else [work]
        return Agent(name=name, model=f"scripted:{name}", description=name, tools=tools, **settings)

    async def join(self, job: NodeInput) -> str:
        """Join what the nodes before gave, and note the key."""
        self.functions[str(job.user)].append(job.idempotency_key)
        return " + ".join(str(text) for text in job.inputs.values()) or "begun"

    def members(self) -> list[Member]:
        """Return a team for each row."""
        worker, slow = self.worker("worker"), self.worker("slow")
        pair = [self.worker("opener"), self.worker("closer")]
        debate = load_debate()
        return [
            Swarm(name="swarm_cost", agents=[worker], limits=SwarmLimits(cost_usd=0.012)),
            Swarm(name="swarm_tokens", agents=[worker], limits=SwarmLimits(total_tokens=3500)),
            Swarm(name="swarm_calls", agents=[worker], limits=SwarmLimits(tool_calls=2)),
            Swarm(name="swarm_steps", agents=[worker], limits=SwarmLimits(steps=2)),
            Swarm(name="own_steps", agents=[self.worker("frugal", limits=Limits(steps=2))]),
            Swarm(name="handoffs", agents=pair, limits=SwarmLimits(max_handoffs=0)),
            Swarm(name="iterations", agents=pair, limits=SwarmLimits(max_iterations=1)),
            Swarm(name="deadline", agents=[slow], limits=SwarmLimits(timeout=timedelta(seconds=8))),
            Swarm(name="node_time", agents=[slow], limits=SwarmLimits(node_timeout=timedelta(seconds=8))),
            Graph(
                name="graph_cost",
                nodes={"begin": self.join, "x": worker, "y": self.worker("other"), "both": self.join},
                entry="begin",
                edges=[("begin", "x"), ("begin", "y"), ("x", "both"), ("y", "both")],
                limits=GraphLimits(cost_usd=0.024),
            ),
            Graph(
                name="node_own_time",
                nodes={"x": Node(slow, timeout=timedelta(seconds=8))},
                entry="x",
                limits=GraphLimits(node_timeout=timedelta(seconds=30)),
            ),
            Graph(
                name="graph_time",
                nodes={"begin": self.join, "x": slow, "after": self.join},
                entry="begin",
                edges=[("begin", "x"), ("x", "after")],
                limits=GraphLimits(timeout=timedelta(seconds=8)),
            ),
            Graph(
                name="executions",
                nodes={"begin": self.join, "x": worker, "after": self.join},
                entry="begin",
                edges=[("begin", "x"), ("x", "after")],
                limits=GraphLimits(max_node_executions=2),
            ),
            Graph(
                name="nested",
                nodes={"begin": self.join, "inner": Swarm(name="inner", agents=[worker]), "after": self.join},
                entry="begin",
                edges=[("begin", "inner"), ("inner", "after")],
                limits=GraphLimits(cost_usd=0.012),
            ),
            debate.Debate(
                name="debate",
                speakers=[self.worker("pro"), self.worker("contra")],
                judge=self.worker("judge"),
                rounds=1,
                limits=PatternLimits(max_node_executions=2),
            ),
            debate.Debate(
                name="debate_cost",
                speakers=[self.worker("pro2"), self.worker("contra2")],
                judge=self.worker("judge2"),
                rounds=1,
                limits=PatternLimits(cost_usd=0.024),
            ),
        ]


ROWS: dict[str, tuple[Limits, str, str, int]] = {
    # What is granted, the end before it, a part of the last output, workers.
    "swarm_cost": (SwarmLimits(cost_usd=1), "cost_budget", "worker: all done", 1),
    "swarm_tokens": (SwarmLimits(total_tokens=90_000), "token_budget", "worker: all done", 1),
    "swarm_calls": (SwarmLimits(tool_calls=90), "max_tool_calls", "worker: all done", 1),
    "swarm_steps": (SwarmLimits(steps=20), "max_steps", "worker: all done", 1),
    "own_steps": (SwarmLimits(steps=20), "max_steps", "frugal: all done", 1),
    "handoffs": (SwarmLimits(max_handoffs=3), "max_handoffs", "closer: all done", 1),
    "iterations": (SwarmLimits(max_iterations=3), "max_iterations", "closer: all done", 1),
    "deadline": (SwarmLimits(timeout=timedelta(minutes=1)), "deadline", "slow: all done", 1),
    "node_time": (SwarmLimits(node_timeout=timedelta(minutes=1)), "node_timeout", "slow: all done", 1),
    "node_own_time": (GraphLimits(node_timeout=timedelta(minutes=1)), "node_timeout", "slow: all done", 1),
    "graph_cost": (GraphLimits(cost_usd=1), "cost_budget", "worker: all done + other: all done", 2),
    "graph_time": (GraphLimits(timeout=timedelta(minutes=1)), "deadline", "slow: all done", 1),
    "executions": (GraphLimits(max_node_executions=9), "max_node_executions", "worker: all done", 1),
    "nested": (GraphLimits(cost_usd=1), "cost_budget", "worker: all done", 1),
    "debate": (PatternLimits(max_node_executions=9), "max_node_executions", "judge: all done", 3),
    "debate_cost": (PatternLimits(cost_usd=1), "cost_budget", "judge2: all done", 3),
}

TIMED = ("deadline", "node_time", "node_own_time", "graph_time")


async def test_limited_team_goes_on(serve: Serve) -> None:
    """A node that a limit has cut short goes on from its own transcript; all is done once, and booked once."""
    stage = Stage()

    async def play(client: Client, row: str) -> None:
        granted, reason, output, workers = ROWS[row]
        run = await client.start(row, "go", user=row)
        first = await run.result()
        assert first.stop_reason == reason
        with pytest.raises(InvalidRequest, match=r"raise|is less than"):
            await run.extend(limits=Limits(output_tokens=1_000_000))
        stage.gates[row].opened.set()
        await run.extend(limits=granted, by="ann")
        result = await run.result()
        assert result.stop_reason == "end_turn"
        assert output in str(result.output)
        made = stage.keys[row]
        # A call that the deadline has met may have been made: its result says so, and the script asks for another.
        cut = len(made) - WANTED * workers if row in TIMED else 0
        assert len(set(made)) == WANTED * workers + cut
        assert cut in (0, 1)
        if row != "debate_cost":  # its judge had begun with what was cut short, and begins anew
            assert len(made) == WANTED * workers + cut
        if not result.usage.estimated:
            assert result.usage.input_tokens == 1000 * stage.asked[row]
            assert sum(node.usage.input_tokens for node in result.nodes) == result.usage.input_tokens
        assert len(set(stage.functions[row])) == len(stage.functions[row])

    async with serve(*stage.members(), models={"scripted": ScriptedModel(stage.script)}) as client:
        async with asyncio.timeout(HANGS):
            await check_rows({row: play(client, row) for row in ROWS})
