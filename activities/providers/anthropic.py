"""Adapter for Anthropic's Messages API, always streamed.

The adapter folds the raw events itself. The SDK's message stream takes broken tool arguments for an error of
the call, half a JSON object for a complete one, and a stream that ends early for a finished message.
"""

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anthropic
import httpx2

from perdure.errors import ErrorKind, ModelError
from perdure.messages import Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, UsageSoFar, digest
from perdure.providers import (
    Block,
    CallDeadline,
    ReplyDraft,
    is_context_overflow,
    kind_of_status,
    parse_retry_after,
)

from ._anthropic_client import AnthropicClients
from ._anthropic_request import AnthropicOptions, build_body, read_config
from .keys import KeySource

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
    # The first two come with status 429, and no wait helps.
    "enforced_spend_limit_reached": "payment",
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


class AnthropicModel:
    """Models of Anthropic; the key is `api_key`, or a function that gives it, or comes from the environment."""

    def __init__(self, api_key: KeySource = None, base_url: str | None = None) -> None:
        self._clients = AnthropicClients(api_key, base_url)

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, settings the API has dropped, and a missing key."""
        read_config(config)
        self._clients.check()

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Stream one call, without retries."""
        options = read_config(request.config)
        body = build_body(request, options)
        draft = ReplyDraft(request, digest(body | options.extra_body))
        deadline = CallDeadline(request.config)
        answer: anthropic.AsyncStream[Any] | None = None
        try:
            client = await deadline.wait_for(self._clients.get(options.base_url))
            answer = await deadline.wait_for(_send(client, body, options, request.config))
            draft.open(answer.response.headers.get("request-id"))
            while (event := await deadline.wait_for(anext(answer, None))) is not None:
                for delta in _fold(event.to_dict(warnings=False), draft):
                    yield delta
            if not (draft.complete and draft.stop):
                raise draft.cut_error()
            yield draft.reply(_STOPS)
        except Exception as error:
            raise _classify(error, draft) from error
        finally:
            if answer is not None:
                await answer.close()

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        await self._clients.aclose()


async def _send(
    client: anthropic.AsyncAnthropic, body: dict[str, Any], options: AnthropicOptions, config: ModelConfig
) -> anthropic.AsyncStream[Any]:
    create: Any = client.messages.create
    # `read` bounds the silence between two bytes, keep-alive messages included.
    timeout = anthropic.Timeout(config.timeout.total_seconds(), connect=5.0, read=config.longest_silence)
    answer: anthropic.AsyncStream[Any] = await create(
        **body, extra_body=options.extra_body, extra_headers=options.extra_headers, timeout=timeout
    )
    return answer


# -- the answer


def _fold(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Fold an event into the draft, and return the events to yield for it at once."""
    match event["type"]:
        case "message_start":
            draft.model = event["message"].get("model", "")
            usage = _usage(event["message"]["usage"], Usage())
            draft.count(usage, final=False)
            return (UsageSoFar(usage=usage),)
        case "content_block_start":
            return _begin_block(event["index"], event["content_block"], draft)
        case "content_block_delta":
            return _extend_block(draft.blocks[event["index"]], event["delta"], draft)
        case "content_block_stop":
            _end_block(draft.blocks[event["index"]])
        case "message_delta":
            draft.stop = event["delta"].get("stop_reason") or draft.stop
            draft.count(_usage(event["usage"], draft.usage or Usage()), final=draft.stop is not None)
        case "message_stop":
            draft.complete = True
        case _:
            # The API reserves the right to add events.
            pass
    return ()


def _begin_block(index: int, content: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    match content:
        case {"type": "text"}:
            return draft.append(draft.block(index, "text"), content.get("text", ""))
        case {"type": "thinking"}:
            block = draft.block(index, "thinking")
            block.signature = content.get("signature") or None
            return draft.append(block, content.get("thinking", ""))
        case {"type": "redacted_thinking", "data": data}:
            draft.block(index, "thinking").redacted = data
        case {"type": "tool_use", "id": id_, "name": name}:
            block = draft.block(index, "tool_call")
            block.id, block.name, block.data = id_, name, content.get("input") or {}
        case _:
            # A block of the provider's own, such as a search on its side: it goes back as it came.
            draft.block(index, "opaque").data = content
    return ()


def _extend_block(block: Block, delta: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    match delta:
        case {"type": "text_delta", "text": text}:
            return draft.append(block, text)
        case {"type": "thinking_delta", "thinking": text}:
            return draft.append(block, text)
        case {"type": "input_json_delta", "partial_json": piece}:
            return draft.append(block, piece)
        case {"type": "signature_delta", "signature": signature}:
            block.signature = signature
        case {"type": "citations_delta"}:
            # Text goes back without its citations: the API allows it.
            pass
        case _:
            raise draft.error("bug", f"unknown delta {delta.get('type')!r}")
    return ()


def _end_block(block: Block) -> None:
    if block.kind == "tool_call" and not block.pieces and block.data:
        # These arguments came complete with the block's start.
        block.pieces.append(json.dumps(block.data))
    if block.kind == "opaque" and block.pieces:
        block.data["input"] = json.loads("".join(block.pieces))


def _usage(counted: dict[str, Any], before: Usage) -> Usage:
    """Return the counts so far: each event carries totals, and may leave out unchanged ones."""

    def count(key: str, otherwise: int) -> int:
        value = counted.get(key)
        return otherwise if value is None else value

    written = count("cache_creation_input_tokens", before.all_cache_write_tokens)
    # The part of `written` that is kept for an hour has a price of its own.
    by_span: dict[str, Any] = counted.get("cache_creation") or {}
    for_an_hour: int | None = by_span.get("ephemeral_1h_input_tokens")
    written_1h = before.cache_write_1h_tokens if for_an_hour is None else min(for_an_hour, written)
    return Usage(
        input_tokens=count("input_tokens", before.input_tokens),
        cache_read_tokens=count("cache_read_input_tokens", before.cache_read_tokens),
        cache_write_tokens=written - written_1h,
        cache_write_1h_tokens=written_1h,
        output_tokens=count("output_tokens", before.output_tokens),
    )


# -- errors


def _classify(error: Exception, draft: ReplyDraft) -> ModelError:
    """Return the error of our vocabulary for anything that the call raised."""
    match error:
        case ModelError():
            return error
        case TimeoutError() | anthropic.APITimeoutError() | httpx2.TimeoutException():
            return draft.timeout_error()
        case anthropic.APIStatusError():
            return _classify_status(error, draft)
        case anthropic.APIConnectionError() | httpx2.TransportError():
            # A cut in the stream reaches us as the transport's own error, not as one of the SDK's.
            return draft.connection_error(error if draft.opened else error.__cause__ or error)
        case json.JSONDecodeError() | UnicodeDecodeError() | httpx2.DecodingError():
            return draft.unreadable_error(error)
        case _:
            return draft.unforeseen_error(error)


def _classify_status(error: anthropic.APIStatusError, draft: ReplyDraft) -> ModelError:
    reason = error.api_message or error.message
    draft.request_id = error.request_id or draft.request_id
    message = f"{error.status_code} {error.type or 'error'}: {reason}"
    return draft.error(_kind(error, reason), message, parse_retry_after(error.response.headers))


def _kind(error: anthropic.APIStatusError, reason: str) -> ErrorKind:
    # Code before type before status: the precise before the general.
    if error.error_code in _CODES:
        return _CODES[error.error_code]
    kind: ErrorKind
    if error.status_code == 200:
        # An error event in the stream: its type is all that says more.
        kind = "stream_cut" if error.type is None else _TYPES.get(error.type, "bug")
    else:
        kind = kind_of_status(error.status_code)
    return "context_overflow" if kind == "bad_request" and is_context_overflow(reason) else kind
