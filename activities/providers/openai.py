"""Adapter for OpenAI's chat completions API, and for servers that speak it: Ollama, vLLM, gateways.

The library is an optional extra, imported when a model is first called or checked.
"""

import json
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from perdure.errors import ErrorKind, ModelError
from perdure.messages import Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, digest
from perdure.providers import (
    CallDeadline,
    ReplyDraft,
    is_context_overflow,
    kind_of_status,
    parse_retry_after,
)

from ._openai_client import ChatClients, OpenAIClients, import_library
from ._openai_request import OpenAIOptions, build_body, read_config
from .keys import KeySource

if TYPE_CHECKING:
    import openai

_STOPS: dict[str, ModelStop] = {
    "stop": "end_turn",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "max_tokens",
    "content_filter": "refusal",
    # Our own word, for answers that came in `refusal` in place of `content`.
    "refusal": "refusal",
}

_CODES: dict[str, ErrorKind] = {
    # It comes with status 429, and no wait helps.
    "insufficient_quota": "payment",
    "billing_hard_limit_reached": "payment",
    "billing_not_active": "payment",
    "context_length_exceeded": "context_overflow",
    "exceed_context_size_error": "context_overflow",
    "invalid_api_key": "authentication",
    "authentication_error": "authentication",
    "permission_error": "authentication",
    "model_not_found": "not_found",
    "not_found_error": "not_found",
    "rate_limit_exceeded": "rate_limited",
    "rate_limit_error": "rate_limited",
    "requests": "rate_limited",
    "tokens": "rate_limited",
    "overloaded_error": "overloaded",
    "server_error": "overloaded",
    "internal_server_error": "overloaded",
    "service_unavailable": "overloaded",
    "api_error": "overloaded",
    "timeout": "timeout",
    "invalid_request_error": "bad_request",
}


class OpenAIModel:
    """Models of a server that speaks chat completions; `provider` decides its address, key and habits.

    A name of `SERVERS` brings its address along; any other needs a `base_url`, of the worker or of the agent. The
    key is `api_key`, or a function that gives it, or NAME_API_KEY of the environment. `keys` gives addresses keys of
    their own.
    """

    def __init__(
        self,
        api_key: KeySource = None,
        base_url: str | None = None,
        provider: str = "openai",
        *,
        keys: Mapping[str, str] | None = None,
    ) -> None:
        self._provider = provider
        self._clients: ChatClients = OpenAIClients(provider, api_key, base_url, keys)

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, settings the API does not have, a missing library, address or key."""
        self._clients.check(read_config(config, self._provider).base_url)

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Stream one call, without retries."""
        options = read_config(request.config, self._provider)
        body = build_body(request, options, self._provider)
        draft = ReplyDraft(request, digest(body | options.extra_body))
        deadline = CallDeadline(request.config)
        answer: openai.AsyncStream[Any] | None = None
        try:
            client = await deadline.wait_for(self._clients.get(options.base_url))
            answer = await deadline.wait_for(_send(client, body, options, request.config))
            draft.open(answer.response.headers.get("x-request-id"))
            while (chunk := await deadline.wait_for(anext(answer, None))) is not None:
                for delta in _fold(chunk.to_dict(warnings=False), draft):
                    yield delta
            if draft.stop is None:
                raise draft.cut_error()
            # Some servers never send usage, though we ask for it. The reply then carries an estimate.
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
    client: Any, body: dict[str, Any], options: OpenAIOptions, config: ModelConfig
) -> "openai.AsyncStream[Any]":
    timeout = import_library().Timeout(
        config.timeout.total_seconds(), connect=5.0, read=config.longest_silence
    )
    answer: openai.AsyncStream[Any] = await client.chat.completions.create(
        **body, extra_body=options.extra_body, extra_headers=options.extra_headers, timeout=timeout
    )
    return answer


# -- the answer


def _fold(chunk: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Fold a chunk into the draft, and yield the events for it."""
    draft.model = chunk.get("model") or draft.model
    if usage := chunk.get("usage"):
        draft.count(_usage(usage), final=True)
    for choice in chunk.get("choices") or ():
        yield from _extend_blocks(choice.get("delta") or {}, draft)
        if choice.get("finish_reason"):
            draft.stop = _correct_stop(choice["finish_reason"], draft)


def _extend_blocks(delta: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    # OpenAI has neither field: vLLM and Ollama send reasoning under one of these two names.
    if thought := delta.get("reasoning_content") or delta.get("reasoning"):
        yield from draft.append(draft.block("thinking", "thinking"), thought)
    for key in ("content", "refusal"):
        if text := delta.get(key):
            yield from draft.append(draft.block(key, "text"), text)
    for call in delta.get("tool_calls") or ():
        yield from _extend_call(call, draft)


def _extend_call(call: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    # A piece with another id begins another call: some servers number all their calls 0.
    index, id_ = call.get("index") or 0, call.get("id")
    function: dict[str, str | None] = call.get("function") or {}
    keys = [key for key in draft.blocks if str(key).startswith(f"call {index} ")]
    if not keys or (id_ and draft.blocks[keys[-1]].id not in ("", id_)):
        keys.append(f"call {index} {len(keys)}")
    block = draft.block(keys[-1], "tool_call")
    block.id = id_ or block.id
    block.name = block.name or function.get("name") or ""
    if extra := call.get("extra_content"):
        # Gemini signs its thoughts there, and refuses the call without it.
        block.extra["extra_content"] = extra
    return draft.append(block, function.get("arguments") or "")


def _correct_stop(reason: str, draft: ReplyDraft) -> str:
    # Some servers say "stop" where the API has a more precise reason.
    if reason != "stop":
        return reason
    if "refusal" in draft.blocks:
        return "refusal"
    return "tool_calls" if any(block.kind == "tool_call" for block in draft.blocks.values()) else reason


def _usage(counted: dict[str, Any]) -> Usage:
    details: dict[str, int | None] = counted.get("prompt_tokens_details") or {}
    read = details.get("cached_tokens") or 0
    written = details.get("cache_write_tokens") or 0
    # OpenAI's prompt tokens include the cached ones; our four counts are disjoint.
    return Usage(
        input_tokens=max(0, (counted.get("prompt_tokens") or 0) - read - written),
        cache_read_tokens=read,
        cache_write_tokens=written,
        output_tokens=counted.get("completion_tokens") or 0,
    )


# -- errors


def _classify(error: Exception, draft: ReplyDraft) -> ModelError:
    """Return the error of our vocabulary for anything that the call raised."""
    if isinstance(error, ModelError):
        return error
    openai = import_library()
    match error:
        case TimeoutError() | openai.APITimeoutError():
            return draft.timeout_error()
        case openai.APIConnectionError():
            return draft.connection_error(error if draft.opened else error.__cause__ or error)
        case openai.APIResponseValidationError() | json.JSONDecodeError() | UnicodeDecodeError():
            return draft.unreadable_error(error)
        case openai.APIError():
            return _classify_refusal(error, draft)
        case _:
            return draft.unforeseen_error(error)


def _classify_refusal(error: Any, draft: ReplyDraft) -> ModelError:
    # An error chunk inside a stream has neither status nor response.
    status: int | None = getattr(error, "status_code", None)
    response = getattr(error, "response", None)
    draft.request_id = getattr(error, "request_id", None) or draft.request_id
    delay = parse_retry_after(response.headers) if response is not None else None
    message = f"{status or 'in the stream'} {error.code or error.type or 'error'}: {error.message}"
    return draft.error(_kind(status, error.code, error.type, error.message), message, delay)


def _kind(status: int | None, code: str | None, type_: str | None, reason: str) -> ErrorKind:
    # Code before type; both count only where they are more precise than a status.
    named = _CODES.get(code or "") or _CODES.get(type_ or "")
    kind: ErrorKind
    if named in ("payment", "context_overflow"):
        return named
    if status is not None:
        kind = kind_of_status(status)
    elif code is not None and code.isdigit():
        # vLLM puts the status there.
        kind = kind_of_status(int(code))
    elif code is None and type_ is None:
        kind = "stream_cut"
    else:
        kind = named or "bug"
    return "context_overflow" if kind == "bad_request" and is_context_overflow(reason) else kind
