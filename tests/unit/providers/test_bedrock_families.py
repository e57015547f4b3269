"""Models of any vendor behind Bedrock: what their requests and answers differ in."""

from dataclasses import replace
from typing import Any

import pytest

from perdure.activities.providers.bedrock import BedrockModel
from perdure.errors import DefinitionError
from perdure.messages import Message, Text, Thinking, ToolCall, ToolResult, Usage
from perdure.model import ModelConfig, ModelRequest, ToolDefinition

from .conftest import Wire
from .dialects import StubReply, json_answer
from .server import Answer

SEARCH = ToolDefinition(name="search", description="Search.", input_schema={"type": "object"})
FAILED = ToolResult(call_id="c1", name="search", content=[Text(text="no such shelf")], is_error=True)
CONVERSATION = (
    Message.user("a"),
    Message(role="assistant", parts=[ToolCall(id="c1", name="search")]),
    Message(role="tool", parts=[FAILED]),
)


def request(model: str, **settings: Any) -> ModelRequest:
    config = ModelConfig(name=f"bedrock:{model}", **settings)
    return ModelRequest(config=config, instructions="Be brief.", messages=CONVERSATION, tools=(SEARCH,))


def whole(*content: dict[str, Any], stop: str = "end_turn") -> Answer:
    """Build an answer of `Converse`, which does not stream."""
    usage = {"inputTokens": 11, "outputTokens": 7, "totalTokens": 18}
    body = {
        "output": {"message": {"role": "assistant", "content": list(content)}},
        "stopReason": stop,
        "usage": usage,
        "metrics": {"latencyMs": 1},
    }
    return json_answer(200, body, {"x-amzn-requestid": "req-1"})


async def sent(wire: Wire, asked: ModelRequest) -> tuple[str, dict[str, Any]]:
    """Return path and body of the request, whichever way it is answered."""
    streams = wire.dialect.answer(StubReply(text=("ok",)))
    model = asked.config.model
    is_whole = (asked.tools and model.startswith(("meta.", "mistral."))) or asked.config.options.get(
        "stream"
    ) is False
    reply = await wire.reply(whole({"text": "ok"}) if is_whole else streams, request=asked)
    assert reply.parts == (Text(text="ok"),)
    received = wire.server.requests[-1]
    return received.path, received.body


@pytest.mark.parametrize(
    ("model", "operation"),
    [
        ("anthropic.claude-test-1:0", "converse-stream"),
        ("amazon.nova-pro-v1:0", "converse-stream"),
        ("cohere.command-r-plus-v1:0", "converse-stream"),
        ("ai21.jamba-1-5-large-v1:0", "converse-stream"),
        ("openai.gpt-oss-120b-1:0", "converse-stream"),
        ("meta.llama3-3-70b-instruct-v1:0", "converse"),
        ("mistral.mistral-large-2407-v1:0", "converse"),
    ],
)
async def test_models_are_called_as_they_answer(bedrock_wire: Wire, model: str, operation: str) -> None:
    """Some do not stream while they have tools. Without tools they do, and an agent may say otherwise."""
    path, _ = await sent(bedrock_wire, request(model))
    assert path == f"/model/{model}/{operation}"
    path, _ = await sent(bedrock_wire, replace(request(model), tools=(), messages=CONVERSATION[:1]))
    assert path.endswith("/converse-stream")
    path, _ = await sent(bedrock_wire, request(model, options={"stream": False}))
    assert path.endswith("/converse")


async def test_whole_answer_is_an_answer(bedrock_wire: Wire) -> None:
    """With its thoughts, its calls and its counts."""
    content: list[dict[str, Any]] = [
        {"reasoningContent": {"reasoningText": {"text": "Hmm."}}},
        {"text": "On it."},
        {"toolUse": {"toolUseId": "t1", "name": "search", "input": {"query": "x"}}},
    ]
    asked = request("mistral.mistral-large-2407-v1:0")
    reply = await bedrock_wire.reply(whole(*content, stop="tool_use"), request=asked)
    assert reply.parts == (
        Thinking(text="Hmm."),
        Text(text="On it."),
        ToolCall(id="t1", name="search", arguments={"query": "x"}),
    )
    assert (reply.stop, reply.request_id) == ("tool_calls", "req-1")
    assert reply.usage == Usage(input_tokens=11, output_tokens=7)
    refusal = bedrock_wire.dialect.refusal(429, "ThrottlingException", "slow down")
    error = await bedrock_wire.error(refusal, request=asked)
    assert (error.kind, error.request_id) == ("rate_limited", "req-1")


@pytest.mark.parametrize(
    ("model", "knows"),
    [
        ("anthropic.claude-test-1:0", True),
        ("us.amazon.nova-2-lite-v1:0", True),
        ("arn:aws:bedrock:eu-central-1:1:application-inference-profile/x", True),
        ("mistral.mistral-large-2407-v1:0", False),
        ("cohere.command-r-v1:0", False),
    ],
)
async def test_error_of_a_tool_is_said(bedrock_wire: Wire, model: str, knows: bool) -> None:
    """By the status of the result, or in words where the model knows none."""
    _, body = await sent(bedrock_wire, request(model))
    (result,) = (block["toolResult"] for block in body["messages"][2]["content"] if "toolResult" in block)
    texts = [part["text"] for part in result["content"]]
    assert (result.get("status"), texts) == (
        ("error", ["no such shelf"]) if knows else (None, ["Error:", "no such shelf"])
    )


@pytest.mark.parametrize(
    ("model", "settings", "fields", "effort"),
    [
        ("anthropic.claude-x", {"thinking": "adaptive"}, {"thinking": {"type": "adaptive"}}, None),
        ("anthropic.claude-x", {"effort": "max"}, None, {"effort": "max"}),
        (
            "us.amazon.nova-2-lite-v1:0",
            {"thinking": "adaptive"},
            {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "medium"}},
            None,
        ),
        (
            "amazon.nova-2-pro-v1:0",
            {"effort": "low"},
            {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": "low"}},
            None,
        ),
        ("amazon.nova-2-pro-v1:0", {"thinking": "off"}, {"reasoningConfig": {"type": "disabled"}}, None),
        ("openai.gpt-oss-20b-1:0", {"effort": "xhigh"}, {"reasoning_effort": "high"}, None),
        ("arn:aws:bedrock:x:1:application-inference-profile/x", {"effort": "low"}, None, {"effort": "low"}),
    ],
)
async def test_thinking_is_set_by_family(
    *,
    bedrock_wire: Wire,
    model: str,
    settings: dict[str, Any],
    fields: dict[str, Any] | None,
    effort: dict[str, Any] | None,
) -> None:
    asked = replace(request(model, **settings), messages=CONVERSATION[:1])
    BedrockModel(region="x").check(asked.config)
    _, body = await sent(bedrock_wire, asked)
    assert body.get("additionalModelRequestFields") == fields
    assert body.get("outputConfig") == effort


@pytest.mark.parametrize(
    ("model", "settings", "words"),
    [
        ("meta.llama3-3-70b", {"thinking": "adaptive"}, "extra_body"),
        ("meta.llama3-3-70b", {"effort": "low"}, "extra_body"),
        ("deepseek.r1-v1:0", {"effort": "low"}, "extra_body"),
        ("openai.gpt-oss-20b-1:0", {"thinking": 2048}, "effort"),
        ("amazon.nova-2-lite-v1:0", {"effort": "high"}, "medium"),
        ("amazon.nova-pro-v1:0", {"thinking": "adaptive"}, "extra_body"),
    ],
)
def test_settings_that_a_family_lacks_are_refused(model: str, settings: dict[str, Any], words: str) -> None:
    """The message says what to set in their place."""
    with pytest.raises(DefinitionError, match=words):
        BedrockModel(region="x").check(ModelConfig(name=f"bedrock:{model}", **settings))
