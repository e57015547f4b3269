"""Limits: hard, checked before each call, and each an end like any other, never an exception."""

from collections import Counter
from typing import Any

import pytest

from perdure import Agent, Graph, InvalidRequest, Limits, ModelConfig, RunFailed, Swarm, ToolContext, tool
from perdure.members import Member
from perdure.messages import Usage
from perdure.model import ModelRequest
from perdure.starter.client.connect import Client
from perdure.testing import Line, ScriptedModel, calls, fails, says
from tests.conftest import Serve, check_rows, until_status

USED = Usage(input_tokens=1000, output_tokens=100)


class Recorder:
    """A script that works for ever, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[ModelRequest] = []

    def __call__(self, request: ModelRequest) -> Any:
        self.asked.append(request)
        if request.tool_choice == "none":
            return says("that is all I know", usage=USED)
        call = calls("work", n=request.step)
        return Line(text=f"step {request.step}", calls=call.calls, usage=USED)


@tool
async def work(n: int) -> str:
    """Work."""
    return "worked"


@pytest.mark.parametrize(
    ("limits", "reason", "steps", "output"),
    [
        (Limits(steps=3), "max_steps", 3, "step 3"),
        (Limits(tool_calls=2), "max_tool_calls", 4, "that is all I know"),
        (Limits(per_tool={"work": 1}, per_tool_ends=True), "max_tool_calls", 3, "that is all I know"),
        (Limits(input_tokens=2500), "token_budget", 2, "step 2"),
        (Limits(output_tokens=250), "token_budget", 3, "step 3"),
        (Limits(total_tokens=3500), "token_budget", 3, "step 3"),
        (Limits(cost_usd=0.0150), "cost_budget", 3, "step 3"),
    ],
)
async def test_limit_gives_reason_and_partial_answer(
    serve: Serve, limits: Limits, reason: str, steps: int, output: str
) -> None:
    model = Recorder()
    agent = Agent(name="a", model="scripted:x", tools=[work], limits=limits)
    async with serve(agent, models={"scripted": ScriptedModel(model)}) as client:
        result = await client.run("a", "go")
    assert (result.stop_reason, result.steps, result.output) == (reason, steps, output)
    assert len(model.asked) == steps
    assert result.error is None
    if limits.tool_calls is not None:
        assert result.tool_calls == limits.tool_calls
    if limits.cost_microusd is not None:
        assert result.cost_microusd is not None
        assert result.cost_microusd <= limits.cost_microusd
    if limits.total_tokens is not None:
        assert result.usage.total_tokens <= limits.total_tokens


async def test_budget_bounds_reply(serve: Serve) -> None:
    """A reply is bounded by what the budget leaves."""
    model = Recorder()
    agent = Agent(name="a", model="scripted:x", tools=[work], limits=Limits(output_tokens=250))
    async with serve(agent, models={"scripted": ScriptedModel(model)}) as client:
        await client.run("a", "go")
    assert [request.max_tokens for request in model.asked] == [250, 150, 50]


async def test_calls_over_limit_are_denied(serve: Serve) -> None:
    """Calls over the limit are denied, and the rest runs."""
    made: list[int] = []

    @tool(name="work")
    async def counted(n: int) -> str:
        """Work."""
        made.append(n)
        return "worked"

    def script(request: ModelRequest) -> Any:
        return says("ok") if request.step == 2 else [calls("work", n=n) for n in range(5)]

    agent = Agent(name="a", model="scripted:x", tools=[counted], limits=Limits(tool_calls=3))
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("a", "go")
        result = await run.result()
        results = (await run.transcript())[2].tool_results
    assert sorted(made) == [0, 1, 2]
    assert [r.is_error for r in results] == [False, False, False, True, True]
    assert (result.stop_reason, result.output, result.tool_calls) == ("max_tool_calls", "ok", 3)


async def test_cost_limit_needs_known_price(serve: Serve) -> None:
    """A cost limit without a known price is rejected at once."""
    async with serve(Agent(name="a", model="ollama:nobody-knows")) as client:
        with pytest.raises(RunFailed, match="price of ollama:nobody-knows is not known") as failed:
            await client.run("a", "go", limits=Limits(cost_usd=1))
    assert failed.value.kind == "InvalidRequest"


async def test_unknown_cost_is_never_zero(serve: Serve) -> None:
    """The cost of an unknown model is unknown, never 0."""
    agent = Agent(name="a", model=ModelConfig(name="other:x"))
    async with serve(agent, models={"other": ScriptedModel([says("hi")])}) as client:
        result = await client.run("a", "go")
    assert result.cost_microusd is None
    assert result.usage.total_tokens > 0


async def test_request_cost_limit_needs_price(serve: Serve) -> None:
    agent = Agent(name="a", model=ModelConfig(name="other:x"))
    async with serve(agent, models={"other": ScriptedModel([says("hi")])}) as client:
        with pytest.raises(RunFailed, match="not known"):
            await client.run("a", "go", limits=Limits(cost_usd=1))
        with pytest.raises(InvalidRequest):
            await client.start("a", 3)  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]


MISSPELT = Limits(per_tool={"wrok": 1})
REFUSED = "limits.per_tool names 'wrok', which is no tool here; there are: work"


async def test_misspelt_tool_limit_is_refused(serve: Serve) -> None:
    """A bound of a tool that is none is refused at each door, with the names that there are; nothing is changed."""

    async def run_of(agent: str, client: Client) -> None:
        with pytest.raises(RunFailed, match=REFUSED) as failed:
            await client.run(agent, "go", limits=MISSPELT)
        assert failed.value.kind == "InvalidRequest"

    async def session(client: Client, **limits: Any) -> None:
        opened = await client.session(f"misspelt-{'-'.join(limits)}", agent="a", **limits)
        with pytest.raises(InvalidRequest, match=REFUSED):
            await opened.say("go")

    async def redrive(client: Client, *, newest: bool) -> None:
        run = await client.start("parks", "go")
        await until_status(client, run.id, "parked")
        with pytest.raises(InvalidRequest, match=REFUSED):
            await run.redrive(newest=newest, limits=MISSPELT)
        assert (await run.status()).status == "parked"
        await run.stop()

    def script(request: ModelRequest) -> Any:
        return (
            fails("authentication", "the key is wrong") if request.config.model == "parks" else says("done")
        )

    agent = Agent(name="a", model="scripted:x", tools=[work])
    parks = Agent(name="parks", model="scripted:parks", tools=[work])
    helper = Agent(name="helper", model="scripted:x", description="Works.", tools=[work])
    members = [agent, parks, Agent(name="boss", model="scripted:x", tools=[helper.as_tool()])]
    async with serve(*members, models={"scripted": ScriptedModel(script)}) as client:
        await check_rows(
            {
                "run": run_of("a", client),
                "session, a turn": session(client, limits=MISSPELT),
                "session, the whole": session(client, session_limits=MISSPELT),
                "redrive": redrive(client, newest=False),
                "redrive with the newest agent": redrive(client, newest=True),
            }
        )
        with pytest.raises(RunFailed, match="which is no tool here; there are: helper, work"):
            await client.run("boss", "go", limits=MISSPELT)


async def test_tool_limit_holds_in_whole_tree(serve: Serve) -> None:
    """A request's bound of one tool is shared by all runs of its tree, and by all turns of a session."""
    made: Counter[str] = Counter()

    @tool
    async def pay(context: ToolContext) -> str:
        """Pay."""
        made[str(context.user)] += 1
        return "paid"

    def script(request: ModelRequest) -> Any:
        if request.tool_choice == "none" or request.messages[-1].role == "tool":
            return says("done")
        names = [each.name for each in request.tools if each.name != "handoff_to_agent"]
        if request.config.model == "hands_over" and request.step == 1:
            return calls("pay") + calls("handoff_to_agent", agent_name="second", message="go on")
        return [calls(name, **({} if name == "pay" else {"input": "pay"})) for name in names * 2]

    def payer(name: str, model: str = "pays") -> Agent:
        return Agent(name=name, model=f"scripted:{model}", description="Pays.", tools=[pay])

    below, alone = payer("below"), payer("alone")
    members: list[Member] = [
        alone,
        Agent(name="boss", model="scripted:boss", tools=[pay, below.as_tool()]),
        Swarm(name="swarm", agents=[payer("first", "hands_over"), payer("second")]),
        Graph(name="graph", nodes={"one": alone, "two": below}, entry=["one", "two"]),
    ]
    bound = Limits(per_tool={"pay": 1})

    async def run_of(name: str, client: Client) -> None:
        await client.run(name, "go", user=name, limits=bound)
        assert made[name] == 1

    async def session(client: Client) -> None:
        opened = await client.session("two-turns", agent="alone", user="session", session_limits=bound)
        for text in ("one", "two"):
            await opened.say(text)
        assert made["session"] == 1

    async with serve(*members, models={"scripted": ScriptedModel(script)}) as client:
        rows = {name: run_of(name, client) for name in ("alone", "boss", "swarm", "graph")}
        await check_rows({**rows, "session": session(client)})
