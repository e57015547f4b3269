"""The scripted model: streams like a provider, counts like one, and says what is wrong with a script."""

import sys
from contextlib import aclosing
from datetime import timedelta
from typing import Any, cast

import pytest

from perdure.errors import ModelError
from perdure.messages import Message, Text, ToolCall, Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, Reply, TextDelta, ThinkingDelta, UsageSoFar
from perdure.testing import Line, ScriptedModel, calls, fails, says


def request(step: int = 1, text: str = "go") -> ModelRequest:
    return ModelRequest(config=ModelConfig(name="scripted:x"), messages=(Message.user(text),), step=step)


async def played(model: ScriptedModel, asked: ModelRequest | None = None) -> list[ModelEvent]:
    async with aclosing(cast("Any", model.stream(asked or request()))) as events:
        return [event async for event in events]


async def test_answer_streams_to_single_reply() -> None:
    usage, thought, *pieces, reply = await played(
        ScriptedModel([says("one two three", thinking="hm") + calls("work", n=1)], chunk=5)
    )
    assert isinstance(usage, UsageSoFar)
    assert thought == ThinkingDelta(text="hm")
    assert [p.text for p in pieces if isinstance(p, TextDelta)] == ["one t", "wo th", "ree"]
    assert isinstance(reply, Reply)
    assert [part.kind for part in reply.parts] == ["thinking", "text", "tool_call"]
    assert reply.stop == "tool_calls"
    assert reply.usage.input_tokens == usage.usage.input_tokens
    assert reply.usage.output_tokens > 0


async def test_each_step_gets_its_line() -> None:
    """Each step gets its line, and lines may be added together."""
    model = ScriptedModel([[calls("a"), calls("b")], says("done", usage=Usage(input_tokens=3))])
    first, second = (await played(model))[-1], (await played(model, request(step=2)))[-1]
    assert isinstance(first, Reply)
    assert [part.name for part in first.parts if isinstance(part, ToolCall)] == ["a", "b"]
    assert isinstance(second, Reply)
    assert (second.parts, second.stop, second.usage) == (
        (Text(text="done"),),
        "end_turn",
        Usage(input_tokens=3),
    )


async def test_async_function_sees_request() -> None:
    async def script(asked: ModelRequest) -> Line:
        return says(asked.messages[-1].text)

    reply = (await played(ScriptedModel(script), request(text="echo")))[-1]
    assert isinstance(reply, Reply)
    assert reply.parts == (Text(text="echo"),)


async def test_digest_identifies_request() -> None:
    digests: list[str | None] = []
    for text in ("a", "a", "b"):
        reply = (await played(ScriptedModel(lambda _: says("x")), request(text=text)))[-1]
        assert isinstance(reply, Reply)
        digests.append(reply.request_digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize("answer", [None, [], "hello", [says("a"), None], 3])
async def test_wrong_script_answer_is_explained(answer: Any) -> None:
    with pytest.raises(ModelError, match=r"answer with says\(\.\.\.\) or calls\(\.\.\.\)") as wrong:
        await played(ScriptedModel(lambda _: answer))
    assert wrong.value.kind == "bug"


async def test_ended_script_says_so() -> None:
    with pytest.raises(ModelError, match="has 1 answers and step 2 asks for one more"):
        await played(ScriptedModel([says("a")]), request(step=2))


async def test_scripted_failure_follows_its_words() -> None:
    """A scripted failure comes after its words, and may repeat."""
    model = ScriptedModel(lambda _: LINE)
    depths: list[int] = []
    for _ in range(3):
        heard: list[ModelEvent] = []
        with pytest.raises(ModelError) as failure:
            async with aclosing(cast("Any", model.stream(request()))) as events:
                heard.extend([event async for event in events])  # pyright: ignore[reportUnknownArgumentType]
        assert failure.value.kind == "rate_limited"
        assert failure.value.retry_after == timedelta(seconds=3)
        depths.append(len(failure.traceback))
    assert len(set(depths)) == 1, "an error that is raised anew does not remember the times before"
    assert sys.exc_info() == (None, None, None)


LINE = says("I was about to") + fails("rate_limited", "slow down", retry_after=timedelta(seconds=3))


async def test_pauses_are_taken_before_each_piece() -> None:
    waited: list[float] = []

    async def pause(seconds: float) -> None:
        waited.append(seconds)

    model = ScriptedModel([says("abcdef")], delay=timedelta(milliseconds=20), chunk=2, pauses=pause)
    await played(model)
    assert waited == [0.02, 0.02, 0.02]
