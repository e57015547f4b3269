"""Models of Anthropic's Messages API, always streamed.

The raw events are folded here rather than by the SDK's message stream: that one takes broken
tool arguments for an error of the call, half a JSON object for a whole one, and a stream that
ends early for a finished message.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, Literal

import anthropic
import httpx2
from pydantic import Field

from perdure.errors import ErrorKind, ModelError
from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    Usage,
)
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, UsageSoFar, digest

from .providers import (
    EMPTY,
    Block,
    Draft,
    Options,
    attachment,
    attachment_base64,
    is_overflow,
    kind_of_status,
    listed_tools,
    merged,
    read_options,
    refuse,
    results_first,
    retry_after,
    sendable,
    unsupported,
    within,
)

_STOPS: dict[str, ModelStop] = {
    "end_turn": "end_turn",
    "tool_use": "tool_calls",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "refusal": "refusal",
    "model_context_window_exceeded": "context_overflow",
    "pause_turn": "pause_turn",
}

_CODES: dict[str, ErrorKind] = {
    "enforced_spend_limit_reached": "payment",  # these two come as 429, and no wait mends them
    "contract_spend_limit_reached": "payment",
    "linked_organization_spend_limit_reached": "payment",
    "linked_organization_billing_unavailable": "payment",
    "organization_on_hold": "payment",
    "cmek_key_disabled": "authentication",
    "cmek_key_network_blocked": "authentication",
}

_TYPES: dict[str, ErrorKind] = {
    "authentication_error": "authentication",
    "permission_error": "authentication",
    "billing_error": "payment",
    "not_found_error": "not_found",
    "request_too_large": "too_large",
    "invalid_request_error": "bad_request",
    "rate_limit_error": "rate_limited",
    "overloaded_error": "overloaded",
    "api_error": "overloaded",
    "conflict_error": "overloaded",
    "timeout_error": "timeout",
}

_KEYS = ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN")

_IMAGES = ("image/png", "image/jpeg", "image/gif", "image/webp")

_MARKABLE = ("text", "image", "document", "tool_use", "tool_result")


class AnthropicOptions(Options):
    """What `ModelConfig.options` may hold for Anthropic."""

    extra_headers: dict[str, str] = Field(default_factory=dict[str, str])
    """Such as `anthropic-beta`."""
    cache: bool = True
    """False sends no prompt caching marks."""
    cache_ttl: Literal["5m", "1h"] | None = None
    parallel_tool_calls: bool = True
    service_tier: Literal["auto", "standard_only"] | None = None


class AnthropicModel:
    """A model of Anthropic's; the key is `api_key`, or comes from the environment."""

    def __init__(self, api_key: str | None = None, base_url: str | None = None) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._clients: dict[str | None, anthropic.AsyncAnthropic] = {}

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, settings the API has dropped, and a missing key."""
        _checked(config)
        self._require_key()

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """One streamed call, without retries."""
        options = _checked(request.config)
        client = self._client(options.base_url)
        body = _body(request, options)
        draft = Draft(request, digest(body | options.extra_body))
        deadline = asyncio.get_running_loop().time() + request.config.timeout.total_seconds()
        answer: anthropic.AsyncStream[Any] | None = None
        try:
            answer = await within(deadline, _send(client, body, options, request.config))
            draft.open(answer.response.headers.get("request-id"))
            while (event := await within(deadline, anext(answer, None))) is not None:
                for shown in _take(event.to_dict(warnings=False), draft):
                    yield shown
            if not (draft.ended and draft.stop):
                raise draft.cut()
            yield draft.reply(_STOPS)
        except Exception as error:
            raise _classified(error, draft) from error
        finally:
            if answer is not None:
                await answer.close()

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    def _client(self, base_url: str | None) -> anthropic.AsyncAnthropic:
        url = base_url or self._base_url
        if url not in self._clients:
            self._require_key()
            self._clients[url] = anthropic.AsyncAnthropic(
                api_key=self._api_key,
                base_url=url,
                max_retries=0,  # Temporal retries, and its retries are seen in history
                open_telemetry=False,  # the activity has a span of its own for the call
            )
        return self._clients[url]

    def _require_key(self) -> None:
        if not self._api_key and not any(os.environ.get(name) for name in _KEYS):
            raise ModelError(
                "authentication",
                "no key for Anthropic: set ANTHROPIC_API_KEY in the worker's environment and restart it",
            )


async def _send(
    client: anthropic.AsyncAnthropic, body: dict[str, Any], options: AnthropicOptions, config: ModelConfig
) -> anthropic.AsyncStream[Any]:
    create: Any = client.messages.create
    timeout = anthropic.Timeout(config.timeout.total_seconds(), connect=5.0)
    answer: anthropic.AsyncStream[Any] = await create(
        **body, extra_body=options.extra_body, extra_headers=options.extra_headers, timeout=timeout
    )
    return answer


# -- the request


def _checked(config: ModelConfig) -> AnthropicOptions:
    for setting in ("temperature", "top_p"):
        if getattr(config, setting) is not None:
            advice = f'for an older model that knows it, set options={{"extra_body": {{"{setting}": ...}}}}'
            refuse(config, setting, advice)
    return read_options(AnthropicOptions, config)


def _body(request: ModelRequest, options: AnthropicOptions) -> dict[str, Any]:
    """The JSON to send, but for `extra_body`, which is laid over it on the way."""
    config = request.config
    mark = _mark(options)
    tools = [_tool(tool.name, tool.description, tool.input_schema) for tool in listed_tools(request)]
    body: dict[str, Any] = {
        "model": config.model,
        "max_tokens": request.max_tokens,
        "messages": _messages(request, mark),
        "stream": True,
    }
    if request.instructions.strip():
        body["system"] = [{"type": "text", "text": request.instructions, **mark}]
    if tools:
        tools[-1] |= mark
        body["tools"] = tools
        if choice := _tool_choice(request, options):
            body["tool_choice"] = choice
    if config.stop_sequences:
        body["stop_sequences"] = list(config.stop_sequences)
    if config.thinking is not None:
        body["thinking"] = _thinking(config.thinking)
    if config.effort is not None:
        body["output_config"] = {"effort": config.effort}
    if options.service_tier is not None:
        body["service_tier"] = options.service_tier
    return body


def _mark(options: AnthropicOptions) -> dict[str, Any]:
    """The caching mark to spread into a block, or nothing."""
    if not options.cache:
        return {}
    ttl = {"ttl": options.cache_ttl} if options.cache_ttl else {}
    return {"cache_control": {"type": "ephemeral", **ttl}}


def _tool(name: str, description: str, schema: dict[str, Any]) -> dict[str, Any]:
    said = {"description": description} if description else {}
    return {"name": name, **said, "input_schema": schema}


def _tool_choice(request: ModelRequest, options: AnthropicOptions) -> dict[str, Any] | None:
    if request.tool_choice == "none" or not request.tools:
        return {"type": "none"}
    if not options.parallel_tool_calls:
        return {"type": "auto", "disable_parallel_tool_use": True}
    return None


def _thinking(thinking: Literal["adaptive", "off"] | int) -> dict[str, Any]:
    if isinstance(thinking, int):
        return {"type": "enabled", "budget_tokens": thinking}
    return {"type": "disabled" if thinking == "off" else "adaptive"}


def _messages(request: ModelRequest, mark: dict[str, Any]) -> list[dict[str, Any]]:
    turns = merged(_turn(message, request) for message in request.messages)
    messages: list[dict[str, Any]] = [
        {"role": role, "content": _filled(role, blocks)} for role, blocks in turns
    ]
    # The end of the conversation is marked, and the end of the user's turn before it: a step of
    # many parallel calls has more blocks than the provider looks back for an earlier mark.
    earlier = [message for message in messages[:-1] if message["role"] == "user"][-1:]
    for message in [*earlier, *messages[-1:]]:
        _mark_end(message["content"], mark)
    return messages


def _turn(message: Message, request: ModelRequest) -> tuple[str, list[dict[str, Any]]]:
    role = "assistant" if message.role == "assistant" else "user"
    blocks = [_block(part, request) for part in results_first(sendable(message, request.config))]
    return role, [block for block in blocks if block is not None]


def _filled(role: str, blocks: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The blocks, with a word added where the API refuses an empty or a merely thinking message."""
    ends_in_thought = role == "assistant" and blocks and blocks[-1]["type"].endswith("thinking")
    return [*blocks, {"type": "text", "text": EMPTY}] if not blocks or ends_in_thought else blocks


def _mark_end(blocks: list[dict[str, Any]], mark: dict[str, Any]) -> None:
    for index in reversed(range(len(blocks))):
        if blocks[index]["type"] in _MARKABLE:
            blocks[index] = {**blocks[index], **mark}
            return


def _block(part: Part, request: ModelRequest) -> dict[str, Any] | None:
    match part:
        case Text(text=text):
            return {"type": "text", "text": text}
        case Thinking(redacted=str(data)):
            return {"type": "redacted_thinking", "data": data}
        case Thinking(text=text, signature=str(signature)):
            return {"type": "thinking", "thinking": text, "signature": signature}
        case Thinking():
            return None  # unsigned, so cut off before its end: the API would refuse it
        case Image() | Document():
            return _attachment(part, request.blobs)
        case Opaque(data=data):
            return data
        case ToolCall(id=id_, name=name, arguments=arguments):
            return {"type": "tool_use", "id": id_, "name": name, "input": arguments}
        case ToolResult():
            return _tool_result(part, request)


def _tool_result(result: ToolResult, request: ModelRequest) -> dict[str, Any]:
    shown = [part for part in result.content if not (isinstance(part, Text) and not part.text.strip())]
    content = [_block(part, request) for part in shown]
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": result.call_id}
    block["content"] = content or [{"type": "text", "text": EMPTY}]
    return block | ({"is_error": True} if result.is_error else {})


def _attachment(part: Image | Document, blobs: Mapping[str, bytes]) -> dict[str, Any]:
    source = {"type": "base64", "media_type": part.media_type}
    if isinstance(part, Image):
        if part.media_type not in _IMAGES:
            raise unsupported(part, "Anthropic")
        return {"type": "image", "source": {**source, "data": attachment_base64(part, blobs)}}
    if part.media_type == "application/pdf":
        source["data"] = attachment_base64(part, blobs)
    elif part.media_type.startswith("text/"):
        text = attachment(part, blobs).decode(errors="replace")
        source = {"type": "text", "media_type": "text/plain", "data": text}
    else:
        raise unsupported(part, "Anthropic")
    return {"type": "document", "source": source, "title": part.name}


# -- the answer


def _take(event: dict[str, Any], draft: Draft) -> Iterable[ModelEvent]:
    """Fold one event into the draft; returns what of it is to be shown at once."""
    match event["type"]:
        case "message_start":
            draft.model = event["message"].get("model", "")
            draft.usage = _usage(event["message"]["usage"], Usage())
            return (UsageSoFar(usage=draft.usage),)
        case "content_block_start":
            return _begin(event["index"], event["content_block"], draft)
        case "content_block_delta":
            return _extend(draft.blocks[event["index"]], event["delta"], draft)
        case "content_block_stop":
            _end(draft.blocks[event["index"]])
        case "message_delta":
            draft.stop = event["delta"].get("stop_reason") or draft.stop
            draft.usage = _usage(event["usage"], draft.usage or Usage())
            draft.usage_final = draft.stop is not None
        case "message_stop":
            draft.ended = True
        case _:
            pass  # the API reserves the right to add events
    return ()


def _begin(index: int, content: dict[str, Any], draft: Draft) -> Iterable[ModelEvent]:
    match content:
        case {"type": "text"}:
            return draft.add(draft.block(index, "text"), content.get("text", ""))
        case {"type": "thinking"}:
            block = draft.block(index, "thinking")
            block.signature = content.get("signature") or None
            return draft.add(block, content.get("thinking", ""))
        case {"type": "redacted_thinking", "data": data}:
            draft.block(index, "thinking").redacted = data
        case {"type": "tool_use", "id": id_, "name": name}:
            block = draft.block(index, "tool_call")
            block.id, block.name, block.data = id_, name, content.get("input") or {}
        case _:
            draft.block(index, "opaque").data = content
    return ()


def _extend(block: Block, delta: dict[str, Any], draft: Draft) -> Iterable[ModelEvent]:
    match delta:
        case {"type": "text_delta", "text": text}:
            return draft.add(block, text)
        case {"type": "thinking_delta", "thinking": text}:
            return draft.add(block, text)
        case {"type": "input_json_delta", "partial_json": piece}:
            return draft.add(block, piece)
        case {"type": "signature_delta", "signature": signature}:
            block.signature = signature
        case {"type": "citations_delta"}:
            pass  # text goes back without its citations: the API allows it
        case _:
            raise draft.error("bug", f"unknown delta {delta.get('type')!r}")
    return ()


def _end(block: Block) -> None:
    if block.kind == "tool_call" and not block.pieces and block.data:
        block.pieces.append(json.dumps(block.data))  # arguments that came whole with the block's start
    if block.kind == "opaque" and block.pieces:
        block.data["input"] = json.loads("".join(block.pieces))


def _usage(counted: dict[str, Any], before: Usage) -> Usage:
    """The counts so far: each event carries totals, and may leave out what has not changed."""

    def count(key: str, otherwise: int) -> int:
        value = counted.get(key)
        return otherwise if value is None else value

    return Usage(
        input_tokens=count("input_tokens", before.input_tokens),
        cache_read_tokens=count("cache_read_input_tokens", before.cache_read_tokens),
        cache_write_tokens=count("cache_creation_input_tokens", before.cache_write_tokens),
        output_tokens=count("output_tokens", before.output_tokens),
    )


# -- errors


def _classified(error: Exception, draft: Draft) -> ModelError:
    match error:
        case ModelError():
            return error
        case TimeoutError() | anthropic.APITimeoutError() | httpx2.TimeoutException():
            return draft.timed_out()
        case anthropic.APIStatusError():
            return _refused(error, draft)
        case anthropic.APIConnectionError() | httpx2.TransportError():
            # A cut in the stream reaches us as the transport's own error, not as one of the SDK's.
            if draft.opened:
                return draft.error("stream_cut", f"the connection broke in the middle of the answer: {error}")
            return draft.error("connection", f"the provider was not reached: {error.__cause__ or error}")
        case json.JSONDecodeError() | UnicodeDecodeError() | httpx2.DecodingError():
            return draft.error("malformed_reply", f"the answer cannot be read: {error}")
        case _:
            return draft.unknown(error)


def _refused(error: anthropic.APIStatusError, draft: Draft) -> ModelError:
    said = error.api_message or error.message
    draft.request_id = error.request_id or draft.request_id
    message = f"{error.status_code} {error.type or 'error'}: {said}"
    return draft.error(_kind(error, said), message, retry_after(error.response.headers))


def _kind(error: anthropic.APIStatusError, said: str) -> ErrorKind:
    """Code before type before status: the precise before the general."""
    if error.error_code in _CODES:
        return _CODES[error.error_code]
    kind: ErrorKind
    if error.status_code == 200:  # an error event in the stream: the type is all there is
        kind = _TYPES.get(error.type or "", "bug") if error.type else "stream_cut"
    else:
        kind = kind_of_status(error.status_code)
    return "context_overflow" if kind == "bad_request" and is_overflow(said) else kind
