"""The loop: steps, tools, steering, output types, and every way a model can stop."""

import asyncio
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel, field_validator

from perdure import (
    Agent,
    FatalToolError,
    Image,
    Limits,
    Policy,
    RetryableToolError,
    Rule,
    RunFailed,
    ToolContext,
    ask_person,
    tool,
)
from perdure.messages import Text, ToolCall
from perdure.model import ModelRequest, ModelStop
from perdure.retries import ToolRetry
from perdure.testing import Line, ScriptedModel, calls, says
from perdure.wire.results import RunResult
from tests.conftest import Gate, Serve, texts, until, until_status


@pytest.fixture
def strict_sandbox() -> bool:
    """These tests take a run through all its ends, each under the sandbox that checks our own files too."""
    return True


@tool
async def order_status(order_id: str) -> str:
    """Where an order is now.

    Args:
        order_id: The order's number.
    """
    return f"{order_id} is on its way"


def support(**changed: Any) -> Agent:
    settings: dict[str, Any] = {"name": "support", "model": "scripted:x", "tools": [order_status]}
    return Agent(**{**settings, **changed})


async def finish(
    serve: Serve, agent: Agent, script: Any, *, prompt: str = "go", **start: Any
) -> tuple[RunResult, list[Any]]:
    """Run the agent on a script, and give its result and transcript."""
    async with serve(agent, models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start(agent.name, prompt, **start)
        result = await run.result()
        return result, await run.transcript()


async def test_question_is_answered_through_tool(serve: Serve) -> None:
    asked: list[ModelRequest] = []

    def script(request: ModelRequest) -> Line:
        asked.append(request)
        if request.step == 1:
            return calls("order_status", order_id="W1")
        return says(request.messages[-1].text)

    result, transcript = await finish(serve, support(instructions="Help."), script, prompt="Where is W1?")
    assert (result.output, result.stop_reason, result.steps) == ("W1 is on its way", "end_turn", 2)
    assert result.tool_calls == 1
    assert result.cost_microusd is not None
    assert result.cost_microusd > 0
    assert [message.role for message in transcript] == ["user", "assistant", "tool", "assistant"]
    assert [message.role for message in asked[1].messages] == ["user", "assistant", "tool"]
    assert asked[0].instructions == "Help."
    assert [t.name for t in asked[0].tools] == ["order_status"]
    assert asked[0].messages[0].text == "Where is W1?"


async def test_calls_run_in_parallel_in_order(serve: Serve) -> None:
    """Tool calls of a step run in parallel, and their results keep their order."""
    running = 0
    most = 0
    everyone = Gate()

    @tool
    async def work(n: int) -> str:
        """Work."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == 3:
            everyone.opened.set()
        await everyone.wait()
        running -= 1
        return f"result {n}"

    script = [[calls("work", n=n) for n in range(6)], says("done")]
    agent = support(tools=[work], tool_concurrency=3)
    _, transcript = await finish(serve, agent, script)
    assert most == 3, "as many as the cap allows, and no more"
    assert [result.text for result in transcript[2].tool_results] == [f"result {n}" for n in range(6)]


async def test_a_tools_own_concurrency_is_kept(serve: Serve) -> None:
    running = most = 0

    @tool(concurrency=1)
    async def work(n: int) -> str:
        """Work."""
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        return "ok"

    await finish(serve, support(tools=[work]), [[calls("work", n=n) for n in range(4)], says("done")])
    assert most == 1


@pytest.mark.parametrize(
    ("call", "says_why"),
    [
        (calls("nothing"), "there is no tool 'nothing'; the tools are 'order_status'"),
        (calls("order_status"), "'order_id' is a required property"),
        (calls("order_status", order_id=7), "order_id: 7 is not of type 'string'"),
        (calls("order_status", order_id="1", more=2), "'more' was unexpected"),
        (
            Line(calls=(ToolCall(id="", name="order_status", arguments={"_raw": "{"}, problem="not JSON"),)),
            "not JSON",
        ),
    ],
)
async def test_impossible_call_goes_to_model(serve: Serve, call: Line, says_why: str) -> None:
    agent = support()
    async with serve(agent, models={"scripted": ScriptedModel([call, says("sorry")])}) as client:
        run = await client.start("support", "go")
        result = await run.result()
        [wrong] = (await run.transcript())[2].tool_results
        assert wrong.is_error
        assert says_why in wrong.text
        assert result.stop_reason == "end_turn"
        history = await run.handle.fetch_history()
        scheduled = [
            e.activity_task_scheduled_event_attributes.activity_type.name
            for e in history.events
            if e.HasField("activity_task_scheduled_event_attributes")
        ]
        assert scheduled == ["resolve_agent", "call_model", "call_model"], "nothing was scheduled for it"


async def test_impossible_calls_are_bounded(serve: Serve) -> None:
    with pytest.raises(RunFailed, match="5 steps in a row") as failed:
        await finish(serve, support(), [calls("nothing")] * 9)
    assert failed.value.kind == "malformed_reply"
    assert failed.value.result is not None
    assert failed.value.result.steps == 5


class Answer(BaseModel):
    city: str
    days: int

    @field_validator("days")
    @classmethod
    def _positive(cls, days: int) -> int:
        if days < 1:
            raise ValueError("must be positive")
        return days


async def test_output_type_gives_fitting_json(serve: Serve) -> None:
    script = [calls("final_answer", city="Bonn", days=3)]
    result, _ = await finish(serve, support(output_type=Answer), script)
    assert Answer.model_validate(result.output) == Answer(city="Bonn", days=3)
    assert result.stop_reason == "end_turn"


async def test_json_text_is_accepted_as_output(serve: Serve) -> None:
    result, _ = await finish(
        serve, support(output_type=Answer), [says('```json\n{"city": "Bonn", "days": 3}\n```')]
    )
    assert result.output == {"city": "Bonn", "days": 3}


async def test_model_repairs_unfitting_output(serve: Serve) -> None:
    script = [
        calls("final_answer", city="Bonn", days=0),
        says("Bonn, three days"),
        calls("final_answer", city="Bonn", days=3),
    ]
    result, transcript = await finish(serve, support(output_type=Answer), script)
    assert result.output == {"city": "Bonn", "days": 3}
    assert "must be positive" in transcript[2].text
    assert "final_answer" in transcript[4].text


async def test_repairs_of_an_output_are_bounded(serve: Serve) -> None:
    asked: list[int] = []

    def script(request: ModelRequest) -> Line:
        asked.append(request.step)
        return says("I would rather talk")

    with pytest.raises(RunFailed, match="output type"):
        await finish(serve, support(output_type=Answer, output_repairs=1), script)
    assert len(asked) == 2


async def test_message_is_read_before_next_step(serve: Serve) -> None:
    gate = Gate()

    @tool
    async def work() -> str:
        """Work."""
        await gate.wait()
        return "worked"

    def script(request: ModelRequest) -> Line:
        return calls("work") if request.step == 1 else says(" | ".join(texts(request.messages)))

    async with serve(support(tools=[work]), models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("support", "go")
        await gate.reached.wait()
        assert (await run.send("also this", id="m1")).unread == 1
        assert (await run.send("also this", id="m1")).unread == 1
        assert (await run.status()).queued == 1, "the same message twice is one message"
        gate.opened.set()
        result = await run.result()
    assert result.output == "go |  | worked | also this"


async def test_message_during_last_call_survives(serve: Serve) -> None:
    """A message that is sent while the model finishes is not lost."""
    gate = Gate()

    async def script(request: ModelRequest) -> Line:
        if request.step == 1:
            await gate.wait()
            return says("done")
        return says(f"read: {request.messages[-1].text}")

    async with serve(support(), models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("support", "go")
        await gate.reached.wait()
        await run.send("wait")
        gate.opened.set()
        result = await run.result()
    assert (result.output, result.steps) == ("read: wait", 2)


@pytest.mark.parametrize(
    ("stop", "reason"),
    [
        ("end_turn", "end_turn"),
        ("stop_sequence", "end_turn"),
        ("max_tokens", "max_tokens"),
        ("refusal", "refusal"),
        ("guardrail", "guardrail"),
        ("context_overflow", "context_overflow"),
    ],
)
async def test_every_stop_has_its_reason(serve: Serve, stop: ModelStop, reason: str) -> None:
    result, _ = await finish(serve, support(), [says("so far", stop=stop)])
    assert result.stop_reason == reason
    assert result.output == "so far"


async def test_cut_call_is_told_and_made_anew(serve: Serve) -> None:
    """A call that was cut by the reply's length does not run: the model is told, and makes it anew."""
    cut = Line(text="I will", calls=calls("order_status", order_id="W").calls, stop="max_tokens")
    result, transcript = await finish(
        serve, support(), [cut, calls("order_status", order_id="W1"), says("ok")]
    )
    first, second = (message.tool_results[0] for message in transcript if message.role == "tool")
    assert (first.is_error, "cut by max_tokens" in first.text) == (True, True)
    assert (second.is_error, result.output, result.missing) == (False, "ok", [])


async def test_run_cut_again_names_the_call(serve: Serve) -> None:
    """A run whose replies are cut again and again ends by `max_tokens`, and names the call that was not made."""
    cut = Line(text="I will", calls=calls("order_status", order_id="W").calls, stop="max_tokens")
    result, _ = await finish(serve, support(), [cut, cut, cut])
    assert (result.stop_reason, result.output) == ("max_tokens", "I will")
    assert [line.partition(":")[0] for line in result.missing] == ['order_status(order_id="W")']


async def test_paused_provider_turn_continues(serve: Serve) -> None:
    result, transcript = await finish(serve, support(), [says("searching", stop="pause_turn"), says("found")])
    assert (result.output, result.steps) == ("found", 2)
    assert [message.role for message in transcript] == ["user", "assistant", "assistant"]


async def test_tool_error_is_bounded_and_masked(serve: Serve) -> None:
    """A tool's error reaches the model bounded and without secrets."""

    @tool
    def broken() -> str:
        """Break."""
        raise ValueError("token=abcdefghijklmnop " + "x" * 10_000)

    _, transcript = await finish(serve, support(tools=[broken]), [calls("broken"), says("ok")])
    [result] = transcript[2].tool_results
    assert result.is_error
    assert result.text.startswith("ValueError: token=[redacted]")
    assert len(result.text) < 4200
    assert result.attempts == 1, "an ordinary exception is the model's to deal with at once"


@pytest.mark.parametrize(
    ("error", "tries"),
    [
        (lambda: RetryableToolError("busy"), 3),
        (lambda: ConnectionError("reset"), 3),
        (lambda: FatalToolError("no"), 1),
        (lambda: KeyError("x"), 1),
    ],
)
async def test_only_transient_failures_are_retried(
    serve: Serve, error: Callable[[], Exception], tries: int
) -> None:
    seen: list[tuple[int, str]] = []

    @tool(retry=ToolRetry(attempts=3, initial_interval=_SOON))
    async def flaky(context: ToolContext) -> str:
        """Fail."""
        seen.append((context.attempt, context.idempotency_key))
        raise error()

    _, transcript = await finish(serve, support(tools=[flaky]), [calls("flaky"), says("ok")])
    assert [attempt for attempt, _ in seen] == list(range(1, tries + 1))
    assert len({key for _, key in seen}) == 1, "one call, one idempotency key"
    assert transcript[2].tool_results[0].is_error


_SOON = timedelta(milliseconds=10)


async def test_every_result_kind_reaches_model(serve: Serve) -> None:
    @tool
    def picture() -> list[Any]:
        """Give a picture."""
        return ["look:", Image(data="iVBORw0K" * 4000)]

    @tool
    async def model() -> Answer:
        """Give a model."""
        return Answer(city="Bonn", days=3)

    @tool
    async def nothing() -> None:
        """Give nothing."""

    seen: list[ModelRequest] = []

    def script(request: ModelRequest) -> Any:
        seen.append(request)
        if request.step == 1:
            return [calls("picture"), calls("model"), calls("nothing")]
        return says("ok")

    _, transcript = await finish(serve, support(tools=[picture, model, nothing]), script)
    look, made, empty = transcript[2].tool_results
    assert look.content[0] == Text(text="look:")
    kept = look.content[1]
    assert isinstance(kept, Image)
    assert kept.data is None, "a picture is kept beside the transcript, not in it"
    assert kept.blob is not None
    assert len(seen[1].blobs[kept.blob]) == 24_000, "and the model still gets it"
    assert made.text == '{"city":"Bonn","days":3}'
    assert empty.text == "done"


async def test_long_result_can_be_read_on(serve: Serve) -> None:
    @tool
    async def long() -> str:
        """Give much."""
        return "".join(f"{n:07d}," for n in range(10_000))

    def script(request: ModelRequest) -> Line:
        names = [tool.name for tool in request.tools]
        if request.step == 1:
            assert "read_result" not in names, "offered only once there is something to read"
            return calls("long")
        if request.step == 2:
            assert "read_result" in names
            [result] = request.messages[-1].tool_results
            return calls("read_result", result=result.spilled, offset=79_984)
        return says(request.messages[-1].text)

    result, transcript = await finish(serve, support(tools=[long]), script)
    assert result.output == "0009998,0009999,"
    assert len(transcript[2].text) < 17_000


async def test_policy_is_closed_by_default(serve: Serve) -> None:
    """A denied call does not run, and the policy denies by default."""
    policy = Policy(
        rules=(
            Rule(verdict="deny", tool="order_status", resource="W9*"),
            Rule(verdict="allow", tool="order_*", role="agent"),
        )
    )
    made: list[str] = []

    @tool(name="order_status", resource="order_id")
    async def looked_up(order_id: str) -> str:
        """Look up."""
        made.append(order_id)
        return "ok"

    script = [[calls("order_status", order_id="W1"), calls("order_status", order_id="W99")], says("ok")]
    agent = support(tools=[looked_up], policy=policy)
    await finish(serve, agent, script, roles=["agent"])
    assert made == ["W1"]
    await finish(serve, agent, script)
    assert made == ["W1"], "without the role nothing matches, and nothing is allowed"


async def test_question_waits_for_answer(serve: Serve) -> None:
    def answer(request: ModelRequest) -> Line:
        if request.step == 1:
            return calls("ask_person", question="Which colour?")
        return says(request.messages[-1].text)

    async with serve(support(tools=[ask_person]), models={"scripted": ScriptedModel(answer)}) as client:
        run = await client.start("support", "paint it")
        await until_status(client, run.id, "waiting_person")
        [question] = (await run.status()).waiting
        assert question.kind == "question"
        assert question.text == "Which colour?"
        await run.send("blue")
        assert (await run.result()).output == "blue"


async def test_paused_run_starts_nothing(serve: Serve) -> None:
    """A paused run starts nothing until it is resumed."""
    gate = Gate()
    steps: list[int] = []

    async def script(request: ModelRequest) -> Line:
        steps.append(request.step)
        if request.step == 1:
            await gate.wait()
            return calls("order_status", order_id="W1")
        return says("done")

    async with serve(support(), models={"scripted": ScriptedModel(script)}) as client:
        run = await client.start("support", "go")
        await gate.reached.wait()
        await run.pause()
        await until_status(client, run.id, "paused")
        gate.opened.set()

        async def answered() -> bool:
            return (await run.status()).messages == 2

        await until(answered)
        status = await run.status()
        assert (status.status, steps) == ("paused", [1]), "the call in flight finished, nothing followed"
        await run.resume()
        assert (await run.result()).output == "done"


async def test_limits_of_a_request_only_tighten(serve: Serve) -> None:
    agent = support(limits=Limits(steps=2))
    result, _ = await finish(serve, agent, [calls("order_status", order_id="W")] * 9, limits=Limits(steps=40))
    assert (result.stop_reason, result.steps) == ("max_steps", 2)
