"""Adapter for Anthropic's Messages API, always streamed.

The adapter reads and folds the raw events itself. The SDK's message stream takes broken tool arguments for an error of
the call, half a JSON object for a complete one, a stream that ends early for a finished message, and a body that is no
stream for none at all.
"""

import json
from collections.abc import AsyncIterator, Iterable
from typing import Any, cast

import anthropic
import httpx2

from perdure.errors import ErrorKind, ModelError
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, UsageSoFar
from perdure.providers import CallDeadline, ReplyDraft, read_count, read_pieces

from ._anthropic_client import AnthropicClients
from ._anthropic_request import AnthropicOptions, read_config, render_body
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
        body = render_body(request, options)
        draft = ReplyDraft(request, body.digest)
        deadline = CallDeadline(request.config)
        answer: anthropic.AsyncStream[Any] | None = None
        try:
            client = await deadline.wait_for(self._clients.get(options.base_url))
            answer = await deadline.wait_for(_send(client, body.json, options, request.config))
            draft.open(answer.response.headers.get("request-id"))
            events = read_pieces(answer.response.aiter_bytes())
            while (event := await deadline.wait_for(anext(events, None))) is not None:
                # The rest is read for the sake of the connection.
                for delta in () if draft.complete else _fold(event, draft):
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
    client: anthropic.AsyncAnthropic, body: bytes, options: AnthropicOptions, config: ModelConfig
) -> anthropic.AsyncStream[Any]:
    # `read` bounds the silence between two bytes, keep-alive messages included.
    timeout = anthropic.Timeout(config.timeout.total_seconds(), connect=5.0, read=config.longest_silence)
    headers = {"content-type": "application/json", **options.extra_headers}
    # Not `messages.create`: it would go through all of the conversation, and encode it, for each call.
    answer: anthropic.AsyncStream[Any] = await client.post(
        "/v1/messages",
        content=body,
        options={"headers": headers, "timeout": timeout},
        cast_to=object,
        stream=True,
        stream_cls=anthropic.AsyncStream[object],
    )
    return answer


# -- the answer


def _fold(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Fold an event into the draft, and yield the events for it."""
    match event.get("type") or _guess_type(event):
        case "message_start":
            yield from _begin_message(event["message"], draft)
        case "content_block_start":
            yield from _begin_block(event.get("index"), event["content_block"], draft)
        case "content_block_delta":
            yield from _extend_block(event.get("index"), event["delta"], draft)
        case "content_block_stop":
            _end_block(event.get("index"), draft)
        case "message_delta":
            draft.stop = event["delta"].get("stop_reason") or draft.stop
            _count(event.get("usage"), draft, final=draft.stop is not None)
        case "message_stop":
            draft.complete = True
        case "message":
            yield from _fold_message(event, draft)
        case "error":
            raise draft.provider_error(event, codes=_CODES)
        case _:
            # The API reserves the right to add events.
            pass


def _guess_type(event: dict[str, Any]) -> str:
    """Return the type of a body without one: a gateway tells of its troubles in a form of its own."""
    return "message" if "content" in event and "error" not in event else "error"


def _fold_message(message: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Fold a message that came whole, from a server that does not stream."""
    yield from _begin_message(message, draft)
    for index, content in enumerate(message.get("content") or ()):
        yield from _begin_block(index, content, draft)
        _end_block(index, draft)
    draft.stop = message.get("stop_reason") or draft.stop
    _count(message.get("usage"), draft, final=True)
    draft.complete = True


def _begin_message(message: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    draft.model = message.get("model") or ""
    _count(message.get("usage"), draft, final=False)
    if draft.usage is not None:
        yield UsageSoFar(usage=draft.usage)


def _begin_block(index: Any, content: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    match content:
        case {"type": "text"}:
            return draft.append(draft.begin(index, "text"), content.get("text"))
        case {"type": "thinking"}:
            block = draft.begin(index, "thinking")
            block.signature = content.get("signature") or None
            return draft.append(block, content.get("thinking"))
        case {"type": "redacted_thinking", "data": data}:
            draft.begin(index, "thinking").redacted = data
        case {"type": "tool_use"}:
            block = draft.begin(index, "tool_call", call_id=content.get("id"), name=content.get("name"))
            # Empty while the arguments are to come. A server that sends them at once sends them here.
            block.arguments = content.get("input") or None
        case _:
            # A block of the provider's own, such as a search on its side: it goes back as it came.
            draft.begin(index, "opaque").data = dict(content)
    return ()


def _extend_block(index: Any, delta: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    match delta:
        case {"type": "text_delta", "text": text}:
            return draft.append(draft.block(index, "text"), text)
        case {"type": "thinking_delta", "thinking": text}:
            return draft.append(draft.block(index, "thinking"), text)
        case {"type": "input_json_delta", "partial_json": piece}:
            return draft.append_arguments(index, piece)
        case {"type": "signature_delta", "signature": signature}:
            draft.block(index, "thinking").signature = signature
        case _:
            # Text goes back without its citations: the API allows it. Other deltas belong to blocks of the
            # provider's own.
            pass
    return ()


def _end_block(index: Any, draft: ReplyDraft) -> None:
    block = draft.end(index)
    if block is not None and block.kind == "opaque" and block.pieces:
        block.data["input"] = json.loads("".join(block.pieces))


def _count(usage: Any, draft: ReplyDraft, *, final: bool) -> None:
    """Note the counts so far: each event carries totals, and may leave out unchanged ones."""
    counted = draft.merge_counts(usage)
    written = read_count(counted.get("cache_creation_input_tokens")) or 0
    # The part of `written` that is kept for an hour has a price of its own.
    by_span = _fields(counted.get("cache_creation"))
    for_an_hour = read_count(by_span.get("ephemeral_1h_input_tokens"))
    written_1h = min(for_an_hour or 0, written)
    draft.count_tokens(
        final=final,
        input_tokens=counted.get("input_tokens"),
        cache_read=counted.get("cache_read_input_tokens"),
        cache_write=written - written_1h,
        cache_write_1h=written_1h,
        # The count at the start is that of the start.
        output_tokens=_fields(usage).get("output_tokens"),
    )


def _fields(value: object) -> dict[str, Any]:
    """Return the fields of an object, none of anything else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


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
        case httpx2.DecodingError() | httpx2.StreamError():
            return draft.unreadable_error(error)
        case _:
            return draft.unforeseen_error(error)


def _classify_status(error: anthropic.APIStatusError, draft: ReplyDraft) -> ModelError:
    draft.request_id = error.request_id or draft.request_id
    return draft.provider_error(
        error.body, status=error.status_code, headers=error.response.headers, codes=_CODES
    )
