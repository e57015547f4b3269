"""Transcripts of any kind, sent to any model: the provider takes the request, always."""

import base64
from dataclasses import replace
from typing import Any

from hypothesis import event, given
from hypothesis import strategies as st

from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    ReplyMeta,
    ResultPart,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
)
from perdure.model import ModelConfig, ModelRequest, ToolDefinition
from tests.pictures import PDF, png
from tests.unit.providers.bodies import taken_body

from . import junk
from .depth import examples

MODELS = (
    *(
        "anthropic:claude-a",
        "anthropic:claude-b",
        "bedrock:anthropic.claude-x",
        "bedrock:us.amazon.nova-pro-v1:0",
    ),
    *(
        "bedrock:meta.llama3-1-70b",
        "bedrock:mistral.mixtral-8x7b",
        "openai:gpt-5",
        "azure:own",
        "openai:deepseek-reasoner",
    ),
    *(
        "openai:gemini-3-pro",
        "gemini:gemini-2.5-pro",
        "responses:gpt-5",
        "vllm:mistral-small",
        "vllm:own-model",
        "ollama:llama3.2",
    ),
)
NAMES = (
    "search",
    "shelf.find",
    "",
    " ",
    "größe",
    "a" * 200,
    "9lives",
    "x\n",
    "functions.search:0",
    junk.HALF,
)
CUT_PNG = base64.b64encode(png()[:40]).decode()
FILES: tuple[Image | Document, ...] = (
    Image(blob="png"),
    Image(media_type="image/jpeg", blob="png"),
    Image(media_type="image/svg+xml", data="PHN2Zy8+"),
    Image(media_type="image/heic", data="AAAAGGZ0eXBoZWlj"),
    Image(data=CUT_PNG),
    Image(data="!"),
    Image(data=""),
    Image(data=PDF),
    Image(blob="large"),
    Document(data=PDF),
    Document(data=PDF, name="\0\n" + "a" * 300),
    Document(data=PDF, media_type="text/plain", name=""),
    Document(data="aGk=", media_type="text/plain"),
    Document(data="aGk=", media_type="text/x-python", name="a.py"),
    Document(data="IA==", media_type="text/plain"),
    Document(data="aGk=", media_type="application/pdf"),
    Document(data="aGk=", media_type="application/msword"),
    Document(data="aGk=", media_type="application/x-odd"),
    Document(blob="png", media_type="text/plain"),
)
READABLE: tuple[Image | Document, ...] = (FILES[0], FILES[9], FILES[12])
BLOBS = {"png": png(), "large": png(b"x" * (6 * 2**20))}
TOOLS = (ToolDefinition(name="search", description="Search.", input_schema={"type": "object"}),)

texts = st.builds(Text, text=junk.texts)
# The large one seldom: it makes an example slow.
files = st.sampled_from([file for file in FILES if file.blob != "large"] * 4 + [FILES[8]])
thoughts = st.sampled_from(
    [
        Thinking(text="hm", signature="c2ln"),
        Thinking(text="hm", signature='{"id": "rs_1", "encrypted_content": "QQ=="}'),
        Thinking(text="hm"),
        Thinking(redacted="QQ=="),
        Thinking(text=" "),
    ]
)
arguments = st.dictionaries(junk.texts, junk.texts, max_size=2)


@st.composite
def own_blocks(draw: st.DrawFn, number: int) -> list[Part]:
    """Calls of the provider's own tools, with or without their results, or results without a call."""
    provider = draw(st.sampled_from(["anthropic", "anthropic", "openai"]))
    call: dict[str, Any] = {"type": "server_tool_use", "id": f"s{number}", "name": "web_search", "input": {}}
    found: dict[str, Any] = {"type": "web_search_tool_result", "tool_use_id": f"s{number}", "content": []}
    earlier = {**found, "tool_use_id": f"s{number - 1}"}
    kinds: list[list[dict[str, Any]]] = [
        [],
        [],
        [],
        [call],
        [call],
        [call, found],
        [earlier],
        [earlier, call],
    ]
    blocks = draw(st.sampled_from(kinds))
    if provider != "anthropic":
        blocks = [{"type": "novelty"} for _ in blocks]
    return [Opaque(provider=provider, data=block) for block in blocks]


@st.composite
def steps(draw: st.DrawFn, number: int) -> list[Message]:
    """A reply of any model, the results of its calls, and what a person says meanwhile."""
    model = draw(st.sampled_from([*MODELS, "gone:model"]))
    count = draw(st.sampled_from([0, 0, 1, 1, 2]))
    calls = [
        ToolCall(
            id=f"call-{number}-{n + 1}",
            name=draw(st.sampled_from(NAMES)),
            arguments=draw(arguments),
            extra=draw(st.sampled_from([{}, {"extra_content": {"google": {"thought_signature": "c2ln"}}}])),
        )
        for n in range(count)
    ]
    own = draw(own_blocks(number))
    parts: list[Part] = [
        *draw(st.lists(thoughts, max_size=2)),
        *draw(st.lists(texts, max_size=2)),
        *own,
        *calls,
    ]
    paused = bool(own) and not calls
    stops = (
        ["pause_turn", "pause_turn", "cancelled"]
        if paused
        else ["tool_calls" if calls else "end_turn", "max_tokens"]
    )
    meta = ReplyMeta(step=number, model=model, stop=draw(st.sampled_from(stops)))
    said = [
        Message.user([*parts]) for parts in draw(st.lists(st.lists(texts | files, max_size=2), max_size=2))
    ]
    messages = [Message(role="assistant", parts=parts, meta=meta)]
    if calls:
        results: list[Part] = []
        for call in calls:
            content: list[ResultPart] = draw(st.lists(texts | files, max_size=2))
            results.append(
                ToolResult(call_id=call.id, name=call.name, content=content, is_error=draw(st.booleans()))
            )
        between = draw(st.booleans())
        tool = Message(role="tool", parts=results)
        return [*messages, *said, tool] if between else [*messages, tool, *said]
    return [*messages, *said]


@st.composite
def requests(draw: st.DrawFn) -> ModelRequest:
    """A request to any model."""
    opening: list[Part] = [*draw(st.lists(texts | files, max_size=3))]
    # More than some providers take in one request.
    opening += [draw(st.sampled_from(READABLE))] * draw(st.sampled_from([0, 0, 0, 8, 30, 120]))
    messages = [Message.user(opening)]
    for number in range(1, draw(st.integers(0, 5)) + 1):
        messages += draw(steps(number))
    name = draw(st.sampled_from(MODELS))
    claude = "claude" in name
    config = ModelConfig(name=name, thinking=draw(st.sampled_from([None, 2048])) if claude else None)
    return ModelRequest(
        config=config,
        instructions=draw(junk.texts),
        messages=tuple(messages),
        tools=draw(st.sampled_from([TOOLS, ()])),
        tool_choice=draw(st.sampled_from(["auto", "none", "required"])),
        max_tokens=draw(st.sampled_from([8192, 2000, 500])),
    )


@given(request=requests())
@examples(200)
def test_provider_takes_any_transcript(request: ModelRequest) -> None:
    """Whatever models, tools and people have put into a conversation, its provider takes the next request."""
    taken_body(replace(request, blobs=BLOBS))
    event(request.config.name)
