"""Models of Anthropic's Messages API, always streamed.

The raw events are folded here rather than by the SDK's message stream: that one takes broken
tool arguments for an error of the call, half a JSON object for a whole one, and a stream that
ends early for a finished message.
"""

import asyncio
import json
import os
from collections.abc import AsyncIterator, Iterable
from typing import Any

import anthropic
import httpx2

from perdure.errors import ErrorKind, ModelError
from perdure.messages import Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, UsageSoFar, digest

from ._anthropic_request import AnthropicOptions, body_of, checked
from .draft import Block, Draft, credible
from .shared import is_overflow, kind_of_status, retry_after, within

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


class AnthropicModel:
    """A model of Anthropic's; the key is `api_key`, or comes from the environment."""

    def __init__(self, api_key: str | None = None, base_url: str | None = None) -> None:
        self._api_key = api_key
        self._base_url = base_url
        self._clients: dict[str | None, anthropic.AsyncAnthropic] = {}

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, settings the API has dropped, and a missing key."""
        checked(config)
        self._require_key()

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """One streamed call, without retries."""
        options = checked(request.config)
        client = self._client(options.base_url)
        body = body_of(request, options)
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
    timeout = anthropic.Timeout(config.timeout.total_seconds(), connect=5.0, read=config.longest_silence)
    answer: anthropic.AsyncStream[Any] = await create(
        **body, extra_body=options.extra_body, extra_headers=options.extra_headers, timeout=timeout
    )
    return answer


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

    return credible(
        Usage(
            input_tokens=count("input_tokens", before.input_tokens),
            cache_read_tokens=count("cache_read_input_tokens", before.cache_read_tokens),
            cache_write_tokens=count("cache_creation_input_tokens", before.cache_write_tokens),
            output_tokens=count("output_tokens", before.output_tokens),
        )
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
        kind = "stream_cut" if error.type is None else _TYPES.get(error.type, "bug")
    else:
        kind = kind_of_status(error.status_code)
    return "context_overflow" if kind == "bad_request" and is_overflow(said) else kind
