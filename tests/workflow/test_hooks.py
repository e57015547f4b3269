"""Hooks on a real server: what a verdict changes, what is recorded, and that each hook is asked once for a call."""

import asyncio
import collections
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client as TemporalClient
from temporalio.worker import Worker

from perdure import (
    Agent,
    Hook,
    Limits,
    Policy,
    RemoteTool,
    RetryableToolError,
    Rule,
    RunFailed,
    Swarm,
    ToolFallback,
    ToolRetry,
    tool,
)
from perdure.hooks import (
    Ask,
    Deny,
    EndTurn,
    HookedCall,
    HookedRun,
    HookRecord,
    Proceed,
    Replace,
    Retry,
    Verdict,
)
from perdure.model import ModelRequest
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.starter.client.run import Run
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.results import Approval
from perdure.workers.dev.server import DevServer
from tests.conftest import Gate, Serve, check_rows, until, until_status
from tests.serving import running

PROCEED = Proceed()


@dataclass
class Asked:
    """Record of the points at which hooks were asked, in order, with what they saw."""

    seen: list[tuple[str, Any]] = field(default_factory=list[tuple[str, Any]])

    def count(self, point: str) -> int:
        return sum(1 for name, _ in self.seen if name == point)

    def hook(self, name: str = "Guard", /, **points: Any) -> Hook:
        """Make a hook that gives these verdicts: a value, a list of values in order, or a function."""

        def at(point: str, verdict: Any) -> Callable[[Any, Any], Any]:
            async def give(_: Any, subject: Any) -> Any:
                self.seen.append((point, subject))
                if isinstance(verdict, list):
                    verdicts: list[Any] = verdict  # pyright: ignore[reportUnknownVariableType]
                    return verdicts[min(self.count(point), len(verdicts)) - 1]
                found = verdict(subject) if callable(verdict) else verdict
                return await found if asyncio.iscoroutine(found) else found

            return give

        kind: type[Hook] = type(
            name, (Hook,), {point: at(point, verdict) for point, verdict in points.items()}
        )
        return kind()


@pytest.fixture
def asked() -> Asked:
    return Asked()


DID: collections.Counter[str] = collections.Counter()


@pytest.fixture(autouse=True)
def _nothing_done() -> None:
    DID.clear()


@tool
async def work(input: str) -> str:  # noqa: A002
    """Work."""
    DID[input] += 1
    return f"did {input}"


@activity.defn(name="far")
async def far(arguments: dict[str, Any], context: dict[str, Any]) -> str:
    DID[arguments["input"]] += 1
    return f"did {arguments['input']}"


def help_out(request: ModelRequest) -> Line:
    text = request.messages[-1].text
    DID[text] += 1
    return says(f"did {text}")


def one_call(name: str) -> Callable[[ModelRequest], Line]:
    """Return a script: one call with the run's message, and then the newest text that the model sees."""

    def script(request: ModelRequest) -> Line:
        text = request.messages[-1].text
        return calls(name, input=text) if request.step == 1 else says(text)

    return script


TOOL_OF = {"function": "work", "remote": "far", "agent": "helper"}
"""Tool of each carrier, which is also the name of the model that calls it."""


@asynccontextmanager
async def carried(
    serve: Serve,
    settings: Settings,
    agents: Mapping[str, tuple[str, Hook]],
    *,
    cold: bool = False,
    **changed: Any,
) -> AsyncGenerator[Client]:
    """Serve agents by name, each of which makes one call by its carrier and has one hook.

    The rows of a table share the worker: each is an agent of its own, or a run with a message of its own.
    """
    queue = f"far-{uuid.uuid4().hex}"
    schema = {"type": "object", "properties": {"input": {"type": "string"}}, "required": ["input"]}
    helper = Agent(name="helper", model="helper:x", description="Helps.")
    tools: dict[str, Any] = {
        "function": work,
        "remote": RemoteTool(name="far", description="Works.", input_schema=schema, task_queue=queue),
        "agent": helper.as_tool(),
    }
    models = {carrier: ScriptedModel(one_call(name)) for carrier, name in TOOL_OF.items()}
    served = [
        Agent(name=name, model=f"{carrier}:x", tools=[tools[carrier]], hooks=[hook], **changed)
        for name, (carrier, hook) in agents.items()
    ]
    worker = {"worker": {"max_cached_workflows": 0}} if cold else {}
    elsewhere = await TemporalClient.connect(settings.address)
    async with (
        serve(*served, models={**models, "helper": ScriptedModel(help_out)}, **worker) as client,
        Worker(elsewhere, task_queue=queue, activities=[far]),
    ):
        yield client


async def waiting_calls(run: Run) -> list[Approval]:
    """Return what the run waits for, once it waits for a person."""
    waiting: list[Approval] = []

    async def waits() -> bool:
        waiting[:] = [item for item in (await run.status()).waiting if isinstance(item, Approval)]
        return bool(waiting)

    await until(waits, every=0.1)
    return waiting


async def resolve(run: Run, *, allow: bool) -> Approval:
    """Answer the one approval that the run waits for."""
    [approval] = await waiting_calls(run)
    await run.resolve_approval(approval.call_id, allow=allow, by="lee", digest=approval.digest)
    return approval


@dataclass(frozen=True)
class Row:
    """Verdict before a call or after it, and what comes of it."""

    verdict: Any
    sees: str
    """Text that the model sees as the call's result; of an ended turn its answer. {} is the run's message."""
    did: int
    """Number of times that the call's work is done."""
    input: str = "{}"
    allow: bool | None = None
    stop: str = "end_turn"
    kind: str = ""
    """Verdict in the record; empty when there is none."""


BEFORE = [
    Row(None, "did {}", 1),
    Row(PROCEED, "did {}", 1),
    Row(Replace(value={"input": "b"}), "did b", 1, input="b", kind="replace"),
    Row(Deny(reason="never"), "This call was refused: never", 0, kind="deny"),
    Row(Retry(guidance="use less"), "use less", 0, kind="retry"),
    Row(Ask(reason="odd"), "did {}", 1, allow=True, kind="ask"),
    Row(Ask(reason="odd"), "This call was refused by lee.", 0, allow=False, kind="ask"),
    Row(EndTurn(text="enough"), "enough", 0, stop="guardrail", kind="end_turn"),
]
AFTER = [
    Row(None, "did {}", 1),
    Row(Replace(value="nothing to see"), "nothing to see", 1, kind="replace"),
    Row(Deny(reason="secret"), "This call was refused: secret", 1, kind="deny"),
    Row(Retry(guidance="again"), "again", 1, kind="retry"),
    Row(EndTurn(text="enough"), "enough", 1, stop="guardrail", kind="end_turn"),
]
ROWS = {
    f"{point}-{place}-{row.kind or 'none'}": (point, row)
    for point, rows in (("before_tool", BEFORE), ("after_tool", AFTER))
    for place, row in enumerate(rows)
}


@pytest.mark.parametrize(
    ("carrier", "place"),
    [
        ("function", "run"),
        ("function", "session"),
        ("remote", "cold"),
        ("remote", "session"),
        ("agent", "cold"),
    ],
)
async def test_verdicts_about_calls(serve: Serve, settings: Settings, carrier: str, place: str) -> None:
    """A verdict changes what runs and what the model sees, is recorded, and its hook is asked once."""
    asked = {name: Asked() for name in ROWS}
    agents = {
        name: (carrier, asked[name].hook(**{point: row.verdict})) for name, (point, row) in ROWS.items()
    }
    async with carried(serve, settings, agents, cold=place == "cold") as client:
        session = place == "session"
        await check_rows(
            {name: _check_verdict(client, name, carrier, asked[name], session=session) for name in ROWS}
        )


async def _check_verdict(client: Client, name: str, carrier: str, asked: Asked, *, session: bool) -> None:
    point, row = ROWS[name]
    stop, output, transcript = await _play(client, row, agent=name, message=name, session=session)
    assert (output, stop) == (row.sees.format(name), row.stop)
    assert DID[row.input.format(name)] == row.did
    [result] = next(message for message in transcript if message.role == "tool").tool_results
    reason = getattr(row.verdict, "reason", getattr(row.verdict, "guidance", ""))
    record = HookRecord(hook="Guard", point=point, verdict=row.kind, reason=reason)
    assert result.hooks == ([record] if row.kind else [])
    assert [point for point, _ in asked.seen] == [point]
    [(_, subject)] = asked.seen
    assert isinstance(subject, HookedCall)
    assert (subject.carrier, subject.tool, subject.call_id) == (carrier, TOOL_OF[carrier], "call-1-1")
    assert dict(subject.arguments) == {"input": name}
    assert (subject.result is not None) == (point == "after_tool")


async def _play(
    client: Client, row: Row, *, agent: str = "a", message: str = "go", session: bool
) -> tuple[str | None, Any, list[Any]]:
    if session:
        talk = await client.session(f"s-{uuid.uuid4().hex[:8]}", agent=agent)
        turn = asyncio.create_task(talk.say(message))
        if row.allow is not None:
            await until_status(client, talk.id, "waiting_approval")
            assert (await resolve(client.get(talk.id), allow=row.allow)).reason == "odd"
        reply = await turn
        return reply.stop_reason, reply.text, await talk.transcript()
    run = await client.start(agent, message)
    if row.allow is not None:
        assert (await resolve(run, allow=row.allow)).reason == "odd"
    result = await run.result()
    return result.stop_reason, result.output, await run.transcript()


# -- handoffs


@pytest.mark.parametrize(
    ("verdict", "order", "output"),
    [
        (None, ["a", "b"], "written"),
        (Deny(reason="stay"), ["a", "a"], "This call was refused: stay"),
        (Retry(guidance="do it yourself"), ["a", "a"], "do it yourself"),
        (Replace(value={"agent_name": "b", "message": "other"}), ["a", "b"], "written"),
        (Replace(value={"agent_name": "x", "message": "other"}), ["a", "a"], "not handed over"),
        (Ask(reason="sure?"), ["a", "b"], "written"),
        (EndTurn(text="enough"), ["a"], "enough"),
    ],
    ids=["none", "deny", "retry", "replace", "replace-unknown", "ask", "end_turn"],
)
async def test_verdicts_about_handoffs(
    serve: Serve, asked: Asked, verdict: Any, order: list[str], output: str
) -> None:
    """A handoff happens as the hooks let it, also after a person has allowed it."""
    turns: list[str] = []
    heard: list[str] = []

    def script(request: ModelRequest) -> Line:
        turns.append(request.config.model)
        if request.config.model == "b":
            heard.append(request.messages[0].text)
            return says("written")
        if request.step == 1:
            return calls("handoff_to_agent", agent_name="b", message="your turn")
        return says(request.messages[-1].text)

    first = Agent(name="a", model="scripted:a", description="x", hooks=[asked.hook(before_tool=verdict)])
    team = Swarm(name="team", agents=[first, Agent(name="b", model="scripted:b", description="y")])
    async with serve(team, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("team", "do it")
        if isinstance(verdict, Ask):
            [approval] = await waiting_calls(run)
            await run.resolve_approval(approval, allow=True)
        result = await run.result()
        transcript = await client.get(f"{run.id}/~a-1").transcript()
    assert turns == order
    assert result.output.startswith(output)
    assert asked.count("before_tool") == 1
    [subject] = [subject for _, subject in asked.seen]
    assert subject.carrier == "handoff"
    [shown] = next(message for message in transcript if message.role == "tool").tool_results
    assert [record.verdict for record in shown.hooks] == ([verdict.kind] if verdict else [])
    if isinstance(verdict, Replace) and heard:
        assert "other" in heard[0]


# -- models


def last_text(request: ModelRequest) -> Line:
    return says(f"{request.instructions}|{request.messages[-1].text}")


@pytest.mark.parametrize("session", [False, True], ids=["run", "session"])
@pytest.mark.parametrize(
    "row",
    [
        ("before_model", [None], "Help.|go", "end_turn", 1),
        ("before_model", [Replace(value="Be brief.")], "Be brief.|go", "end_turn", 1),
        ("before_model", [EndTurn(text="closed")], "closed", "guardrail", 0),
        ("after_model", [PROCEED], "Help.|go", "end_turn", 1),
        ("after_model", [Replace(value="other")], "other", "end_turn", 1),
        ("after_model", [EndTurn(text="closed")], "closed", "guardrail", 1),
        ("after_model", [Retry(guidance="shorter"), None], "Help.|shorter", "end_turn", 2),
        ("after_model", [Deny(reason="rude"), None], "Help.|Your answer was refused: rude", "end_turn", 2),
    ],
)
async def test_verdicts_about_models(
    serve: Serve, asked: Asked, session: bool, row: tuple[str, list[Any], str, str, int]
) -> None:
    """A verdict about a model call changes the request or the reply, and is recorded with the reply."""
    point, verdicts, output, stop, models = row
    requests: list[ModelRequest] = []

    def script(request: ModelRequest) -> Line:
        requests.append(request)
        return last_text(request)

    agent = Agent(name="a", model="scripted:x", instructions="Help.", hooks=[asked.hook(**{point: verdicts})])
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        found, given, transcript = await _play(client, Row(None, "", 0), session=session)
    assert (given, found, len(requests)) == (output, stop, models)
    replies = [message for message in transcript if message.role == "assistant"]
    recorded = [[record.verdict for record in reply.meta.hooks] for reply in replies]
    assert recorded == [
        [verdict.kind] if verdict and verdict.kind != "proceed" else [] for verdict in verdicts
    ]
    assert asked.count(point) == len(verdicts)
    if isinstance(verdicts[0], Deny):
        assert requests[1].messages[1].text == "(withheld)"


async def test_refused_replies_make_no_calls(serve: Serve, asked: Asked) -> None:
    """The tool calls of a refused reply are not made, and the model reads why."""
    hook = asked.hook(after_model=[Retry(guidance="think again"), None])
    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=[hook])
    async with serve(agent, models={"scripted": ScriptedModel(one_call("work"))}) as client:
        assert (await client.run("a", "go")).output == "think again"
    assert not DID


def _no_to_all(_: Any) -> Verdict:
    return Retry(guidance="no")


def _shout(run: HookedRun) -> Verdict:
    return Replace(value=f"{run.output}!")


def _full_stop(run: HookedRun) -> Verdict:
    return Replace(value=f"{run.output}.")


async def test_refused_reply_is_not_the_last_word(serve: Serve, asked: Asked) -> None:
    """The text of a refused reply does not come back when the run ends early."""
    hook = asked.hook(after_model=_no_to_all)
    agent = Agent(name="a", model="scripted:x", hooks=[hook], on_failure="answer", limits=Limits(steps=2))
    models = {"scripted": ScriptedModel(lambda _: says("secret"))}
    async with serve(agent, models=models) as client:
        run = await client.start("a", "go")
        try:
            output = (await run.result()).output
        except RunFailed as error:
            output = error.result.output if error.result else None
    assert "secret" not in str(output)


# -- start and end


@pytest.mark.parametrize("session", [False, True], ids=["run", "session"])
async def test_start_and_end(serve: Serve, asked: Asked, session: bool) -> None:
    """Hooks see the message at the start and the output at the end, once a run or turn."""
    hook = asked.hook(on_start=None, on_end=_shout)
    agent = Agent(name="a", model="scripted:x", hooks=[hook])
    async with serve(agent, models={"scripted": ScriptedModel(lambda _: says("hi"))}) as client:
        stop, output, _ = await _play(client, Row(None, "", 0), session=session)
    assert (stop, output) == ("end_turn", "hi!")
    assert [point for point, _ in asked.seen] == ["on_start", "on_end"]
    start, end = (subject for _, subject in asked.seen)
    assert isinstance(start, HookedRun)
    assert start.message is not None
    assert (start.message.text, end.output, end.stop_reason) == ("go", "hi", "end_turn")


async def test_end_at_start(serve: Serve, asked: Asked) -> None:
    """A hook at the start can end the run before any model call; the hooks at the end see its answer."""
    hook = asked.hook(on_start=EndTurn(text="closed"), on_end=_full_stop)
    agent = Agent(name="a", model="scripted:x", hooks=[hook])
    model = ScriptedModel([])
    async with serve(agent, models={"scripted": model}) as client:
        result = await client.run("a", "go")
    assert (result.output, result.stop_reason, result.steps) == ("closed.", "guardrail", 0)


async def test_a_limit_is_an_end_like_others(serve: Serve, asked: Asked) -> None:
    """Hooks see the words of a run that a limit ends."""
    hook = asked.hook(on_end=Replace(value="checked"))
    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=[hook], limits=Limits(steps=1))
    script = ScriptedModel(lambda _: says("secret") + calls("work", input="a"))
    async with serve(agent, models={"scripted": script}) as client:
        result = await client.run("a", "go")
    assert (result.output, result.stop_reason) == ("checked", "max_steps")
    assert asked.count("on_end") == 1


async def test_message_during_last_hook_is_read(serve: Serve, asked: Asked) -> None:
    """A message that comes while hooks look at the end is read, and the next end is looked at."""
    gate = Gate()

    async def look(run: HookedRun) -> None:
        if run.output == "1":
            await gate.wait()

    agent = Agent(name="a", model="scripted:x", hooks=[asked.hook(on_end=look)])
    models = {"scripted": ScriptedModel(lambda request: says(str(request.step)))}
    async with serve(agent, models=models) as client:
        run = await client.start("a", "go")
        await gate.reached.wait()
        await run.send("more")
        gate.opened.set()
        assert (await run.result()).output == "2"
    assert asked.count("on_end") == 2


# -- several hooks, other checks


async def test_later_hooks_see_earlier_values(serve: Serve, asked: Asked) -> None:
    """Each hook sees the values that those before it have set; all records are kept."""

    def add(letter: str) -> Callable[[HookedCall], Replace]:
        return lambda call: Replace(value={"input": call.arguments["input"] + letter})

    hooks = [asked.hook("First", before_tool=add("b")), asked.hook("Second", before_tool=add("c"))]
    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=hooks)
    async with serve(agent, models={"scripted": ScriptedModel(one_call("work"))}) as client:
        run = await client.start("a", "go")
        assert (await run.result()).output == "did gobc"
        [result] = (await run.transcript())[2].tool_results
    assert [record.hook for record in result.hooks] == ["First", "Second"]


@pytest.mark.parametrize("carrier", ["remote", "agent", "function"])
async def test_records_before_and_after_stand_once(
    serve: Serve, settings: Settings, asked: Asked, carrier: str
) -> None:
    hook = asked.hook(before_tool=Replace(value={"input": "b"}), after_tool=Replace(value="shown"))
    async with carried(serve, settings, {"a": (carrier, hook)}) as client:
        run = await client.start("a", "go")
        assert (await run.result()).output == "shown"
        [result] = (await run.transcript())[2].tool_results
    assert [record.point for record in result.hooks] == ["before_tool", "after_tool"]


async def test_policy_denies_before_hooks(serve: Serve, asked: Asked) -> None:
    """A call that the policy denies reaches no hook."""
    policy = Policy(rules=(Rule(verdict="deny", tool="work"),))
    hook = asked.hook(before_tool=PROCEED, after_tool=PROCEED)
    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=[hook], policy=policy)
    async with serve(agent, models={"scripted": ScriptedModel(one_call("work"))}) as client:
        assert "policy" in (await client.run("a", "go")).output
    assert not asked.seen


async def test_person_sees_arguments_that_run(serve: Serve, asked: Asked) -> None:
    """An approval by policy comes after the hooks, so the person sees the arguments that they have set."""
    policy = Policy(rules=(Rule(verdict="ask", tool="work"),))
    hook = asked.hook(before_tool=Replace(value={"input": "b"}))
    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=[hook], policy=policy)
    async with serve(agent, models={"scripted": ScriptedModel(one_call("work"))}) as client:
        run = await client.start("a", "go")
        assert (await resolve(run, allow=True)).arguments == {"input": "b"}
        assert (await run.result()).output == "did b"
    assert asked.count("before_tool") == 1


async def test_policy_judges_arguments_of_hooks(serve: Serve, asked: Asked) -> None:
    """Arguments that a hook sets are judged by the policy as well."""

    @tool(resource="input")
    async def work(input: str) -> str:  # noqa: A002
        """Work."""
        DID[input] += 1
        return "did"

    policy = Policy(rules=(Rule(verdict="deny", tool="work", resource="b"), Rule(verdict="allow")))
    hook = asked.hook(before_tool=Replace(value={"input": "b"}))
    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=[hook], policy=policy)
    async with serve(agent, models={"scripted": ScriptedModel(one_call("work"))}) as client:
        assert "policy" in (await client.run("a", "go")).output
    assert not DID


async def test_refused_call_has_no_stand_in(serve: Serve, asked: Asked) -> None:
    """A fallback answers for a tool that failed, not for a call that hooks refused."""

    @tool(fallback=ToolFallback(answer="yesterday's"))
    async def work(input: str) -> str:  # noqa: A002
        """Work."""
        return "did"

    hook = asked.hook(before_tool=Deny(reason="no"))
    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=[hook])
    async with serve(agent, models={"scripted": ScriptedModel(one_call("work"))}) as client:
        assert (await client.run("a", "go")).output == "This call was refused: no"


async def test_retried_tool_asks_once(serve: Serve, asked: Asked) -> None:
    """A tool that is retried has its hooks asked once before and once after."""

    @tool(retry=ToolRetry(initial_interval=timedelta(milliseconds=10)))
    async def work(input: str) -> str:  # noqa: A002
        """Work."""
        DID[input] += 1
        if DID[input] < 3:
            raise RetryableToolError("busy")
        return f"did {input}"

    hook = asked.hook(before_tool=Replace(value={"input": "b"}), after_tool=None)
    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=[hook])
    async with serve(agent, models={"scripted": ScriptedModel(one_call("work"))}) as client:
        assert (await client.run("a", "go")).output == "did b"
    assert DID == {"b": 3}
    assert [point for point, _ in asked.seen] == ["before_tool", "after_tool"]


# -- hooks that fail


class Broken(Exception):
    pass


def _raise(_: Any) -> None:
    raise Broken("sorry")


def _give(value: Any) -> Callable[[Any], Any]:
    def give(_: Any) -> Any:
        return value

    return give


BAD = [_raise, _give("yes"), _give(Ask(reason="x"))]
NOT_OF_TOOLS = [_raise, _give(7), _give(Replace(value="no object"))]


PLACES = [
    ("remote", "before_tool"),
    ("remote", "after_tool"),
    ("agent", "before_tool"),
    ("function", "before_model"),
    ("function", "after_model"),
    ("function", "on_start"),
    ("function", "on_end"),
]
FAILING = {f"{carrier}-{point}-{bad}": (carrier, point, bad) for carrier, point in PLACES for bad in range(3)}


async def test_failing_hook_parks(serve: Serve, settings: Settings) -> None:
    """A hook that raises, or gives no verdict of its point, parks the run; resumed, it is asked again."""
    mended: set[str] = set()

    def hook(name: str, point: str, bad: int) -> Hook:
        wrong = (NOT_OF_TOOLS if point == "before_tool" else BAD)[bad]

        def verdict(subject: Any) -> Any:
            return None if name in mended else wrong(subject)

        return Asked().hook(**{point: verdict})

    agents = {name: (carrier, hook(name, point, bad)) for name, (carrier, point, bad) in FAILING.items()}

    async def check(name: str, point: str) -> None:
        run = await client.start(name, name)
        await until_parked(client, run)
        failure = (await run.status()).failure
        assert failure is not None
        assert failure.kind == "hook_failed"
        assert point in failure.message
        assert DID[name] == (point in ("after_tool", "on_end"))
        mended.add(name)
        await run.resume()
        assert (await run.result()).output == f"did {name}"
        assert DID[name] == 1

    async with carried(serve, settings, agents) as client:
        await check_rows({name: check(name, point) for name, (_, point, _) in FAILING.items()})


async def until_parked(client: Client, run: Run) -> None:
    """Wait until the run is parked: a failing hook is tried again for half a minute, so ask rarely."""
    await until_status(client, run.id, "parked", every=0.25)


@pytest.mark.parametrize("point", ["before_tool", "after_tool"])
async def test_failing_hook_refuses_function(
    serve: Serve, settings: Settings, asked: Asked, point: str
) -> None:
    """A function is not called, or its result is withheld, when its hook fails; the model reads why."""
    async with carried(serve, settings, {"a": ("function", asked.hook(**{point: _raise}))}) as client:
        result = await client.run("a", "go")
    assert f"hook Guard failed at {point}: Broken: sorry" in result.output
    assert DID["go"] == (point == "after_tool")


POINTS = ("before_tool", "after_tool", "before_model", "on_start", "on_end")


async def test_failing_hook_fails_run(serve: Serve, settings: Settings) -> None:
    """With on_failure="fail" the run fails, and gives nothing that no hook has seen."""
    agents = {point: ("remote", Asked().hook(**{point: _raise})) for point in POINTS}

    async def check(point: str) -> None:
        with pytest.raises(RunFailed) as failed:
            await client.run(point, "go")
        assert failed.value.kind == "hook_failed"
        if point == "on_end":
            assert failed.value.result is not None
            assert failed.value.result.output == ""

    async with carried(serve, settings, agents, on_failure="fail") as client:
        await check_rows({point: check(point) for point in POINTS})


# -- stop and cancel


async def test_stop_while_hooks_are_asked(serve: Serve, settings: Settings) -> None:
    """A run that is stopped or cancelled while hooks hang ends within the grace, without unseen words."""
    rows = [(point, how) for point in POINTS if point != "before_model" for how in ("stop", "cancel")]
    gates = {f"{point}-{how}": Gate() for point, how in rows}

    def hook(gate: Gate, point: str) -> Hook:
        async def hang(_: Any) -> None:
            await gate.wait()

        return Asked().hook(**{point: hang})

    async def check(name: str, how: str) -> None:
        run = await client.start(name, "go")
        await gates[name].reached.wait()
        await (run.stop() if how == "stop" else run.cancel())
        async with asyncio.timeout(45):
            result = await run.result()
        gates[name].opened.set()
        assert result.stop_reason == ("stopped" if how == "stop" else "cancelled")
        assert "did" not in str(result.output)

    agents = {f"{point}-{how}": ("remote", hook(gates[f"{point}-{how}"], point)) for point, how in rows}
    async with carried(serve, settings, agents) as client:
        await check_rows({f"{point}-{how}": check(f"{point}-{how}", how) for point, how in rows})


async def test_parked_by_hooks_can_be_stopped(serve: Serve, settings: Settings) -> None:
    """A run that a broken hook has parked can be stopped, and gives no words that no hook has seen."""
    agents = {point: ("remote", Asked().hook(**{point: _raise})) for point in POINTS}

    async def check(point: str) -> None:
        run = await client.start(point, "go")
        await until_parked(client, run)
        await run.stop()
        async with asyncio.timeout(45):
            result = await run.result()
        assert result.stop_reason == "stopped"
        assert "did" not in str(result.output)

    async with carried(serve, settings, agents) as client:
        await check_rows({point: check(point) for point in POINTS})


async def test_stopped_words_are_seen_by_hooks(serve: Serve, asked: Asked) -> None:
    """The newest words of a stopped run go through the hooks at the end."""
    gate = Gate()

    @tool
    async def wait() -> str:
        """Wait."""
        await gate.wait()
        return "late"

    agent = Agent(
        name="a", model="scripted:x", tools=[wait], hooks=[asked.hook(on_end=Replace(value="checked"))]
    )
    models = {"scripted": ScriptedModel(lambda _: says("secret") + calls("wait"))}
    async with serve(agent, models=models) as client:
        run = await client.start("a", "go")
        await gate.reached.wait()
        await run.stop()
        result = await run.result()
    assert (result.output, result.stop_reason) == ("checked", "stopped")


# -- continue-as-new


async def test_continue_as_new_asks_no_hook_again(
    impatient: DevServer, settings: Settings, asked: Asked
) -> None:
    """A run that continues as new several times asks each hook once for each call."""
    hook = asked.hook(on_start=None, before_tool=PROCEED, after_tool=PROCEED, before_model=None, on_end=None)

    def script(request: ModelRequest) -> Line:
        return says("done") if request.step > 30 else calls("work", input=str(request.step))

    agent = Agent(name="a", model="scripted:x", tools=[work], hooks=[hook])
    mine = settings.model_copy(update={"address": impatient.address})
    models = {"scripted": ScriptedModel(script)}
    async with running([agent], models=models, address=impatient.address, settings=mine) as client:
        run = await client.start("a", "go")
        assert (await run.result()).output == "done"
        described = await run.describe()
    extended = described.raw_description.workflow_extended_info
    assert extended is not None
    assert extended.original_start_time is not None
    points = collections.Counter(point for point, _ in asked.seen)
    assert points == {"on_start": 1, "before_tool": 30, "after_tool": 30, "before_model": 31, "on_end": 1}
