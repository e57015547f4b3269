"""Adapter for OpenAI's chat completions API, and for servers that speak it: Ollama, vLLM, gateways.

The library is an optional extra, imported when a model is first called or checked.
"""

from collections.abc import AsyncIterator, Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

import httpx2

from perdure.errors import ErrorKind, ModelError
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop
from perdure.providers import MODEL_REFUSAL, CallDeadline, ReplyDraft, read_count, read_pieces

from ._openai_client import ChatClients, OpenAIClients, import_library
from ._openai_request import OpenAIOptions, read_config, render_body
from .keys import KeySource

if TYPE_CHECKING:
    import openai

_STOPS: dict[str, ModelStop] = {
    "stop": "end_turn",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
    "length": "max_tokens",
    "content_filter": "refusal",
}

_CODES: dict[str, ErrorKind] = {
    # It comes with status 429, and no wait helps.
    "insufficient_quota": "payment",
    "billing_hard_limit_reached": "payment",
    "billing_not_active": "payment",
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
        body = render_body(request, options, self._provider)
        draft = ReplyDraft(request, body.digest)
        deadline = CallDeadline(request.config)
        answer: openai.AsyncStream[Any] | None = None
        try:
            client = await deadline.wait_for(self._clients.get(options.base_url))
            path = self._clients.path(request.config.model)
            answer = await deadline.wait_for(_send(client, path, body.json, options, request.config))
            draft.open(answer.response.headers.get("x-request-id"))
            chunks = read_pieces(answer.response.aiter_bytes())
            while (chunk := await deadline.wait_for(anext(chunks, None))) is not None:
                for delta in _fold(chunk, draft):
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
    client: Any, path: str, body: bytes, options: OpenAIOptions, config: ModelConfig
) -> "openai.AsyncStream[Any]":
    library = import_library()
    timeout = library.Timeout(config.timeout.total_seconds(), connect=5.0, read=config.longest_silence)
    headers = {"content-type": "application/json", **options.extra_headers}
    # Not `chat.completions.create`: it would go through all of the conversation, and encode it, for each call.
    answer: openai.AsyncStream[Any] = await client.post(
        path,
        content=body,
        options={"headers": headers, "timeout": timeout},
        cast_to=object,
        stream=True,
        stream_cls=library.AsyncStream[object],
    )
    return answer


# -- the answer


def _fold(chunk: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Fold a chunk, or a completion that came whole, into the draft, and yield the events for it."""
    if _is_error(chunk):
        raise draft.provider_error(chunk, codes=_CODES)
    draft.model = chunk.get("model") or draft.model
    for choice in chunk.get("choices") or ():
        if choice.get("index"):
            continue  # one answer was asked for
        # A server that does not stream sends the whole message. Behind pieces it only repeats them.
        message = choice.get("message") if not choice.get("delta") and not draft.blocks else None
        yield from _extend_blocks(choice.get("delta") or message or {}, draft)
        if reason := choice.get("finish_reason") or (message is not None and "stop"):
            draft.stop = _correct_stop(reason, draft)
    if usage := chunk.get("usage"):
        # Some servers count in each chunk.
        _count(usage, draft, final=draft.stop is not None or not chunk.get("choices"))


def _is_error(chunk: dict[str, Any]) -> bool:
    """Return whether the chunk tells of an error: in OpenAI's form, or in one of a server that speaks like it."""
    if chunk.get("error") or chunk.get("object") == "error":
        return True
    known = ("choices", "usage", "id", "object", "model")
    return bool(chunk) and not any(key in chunk for key in known) and any(key in chunk for key in _ERROR_KEYS)


_ERROR_KEYS = ("detail", "message", "errors", "msg")


def _extend_blocks(delta: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    # OpenAI has neither field: vLLM and Ollama send reasoning under one of these two names.
    if thought := delta.get("reasoning_content") or delta.get("reasoning"):
        yield from draft.append(draft.block("thinking", "thinking"), thought)
    for key in ("content", "refusal"):
        for piece in _pieces(delta.get(key)):
            is_thought = _kind_of(piece) in ("thinking", "reasoning")
            block = draft.block("thinking", "thinking") if is_thought else draft.block(key, "text")
            yield from draft.append(block, piece)
    for call in delta.get("tool_calls") or ():
        yield from _extend_call(call, draft)
    if call := delta.get("function_call"):  # the API before it had several calls
        yield from _extend_call({"function": call}, draft)


def _pieces(content: Any) -> list[Any]:
    """Return the pieces of a content: some servers send a list of texts and thoughts."""
    if not content:
        return []
    return list[Any](content) if isinstance(content, list) else [content]  # pyright: ignore[reportUnknownArgumentType]


def _kind_of(piece: object) -> object:
    return cast("dict[str, object]", piece).get("type") if isinstance(piece, dict) else None


def _extend_call(call: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    function: dict[str, Any] = call.get("function") or {}
    return draft.extend_call(
        f"call {call.get('index') or 0}",
        call_id=call.get("id"),
        name=function.get("name"),
        arguments=function.get("arguments"),
        # Gemini signs its thoughts there, and refuses the call without it.
        extra={"extra_content": call["extra_content"]} if call.get("extra_content") else None,
    )


def _correct_stop(reason: Any, draft: ReplyDraft) -> Any:
    # Some servers say "stop" where the API has a more precise reason.
    if reason != "stop":
        return reason
    if draft.has("refusal"):
        return MODEL_REFUSAL
    return "tool_calls" if draft.has_calls else reason


def _count(usage: Any, draft: ReplyDraft, *, final: bool) -> None:
    counted = draft.merge_counts(usage)
    found = counted.get("prompt_tokens_details")
    details = cast("dict[str, Any]", found) if isinstance(found, dict) else {}
    read = read_count(details.get("cached_tokens")) or 0
    written = read_count(details.get("cache_write_tokens")) or 0
    # OpenAI's prompt tokens include the cached ones; our four counts are disjoint.
    prompt = read_count(counted.get("prompt_tokens"))
    draft.count_tokens(
        final=final,
        input_tokens=None if prompt is None else max(0, prompt - read - written),
        cache_read=read,
        cache_write=written,
        output_tokens=counted.get("completion_tokens"),
    )


# -- errors


def _classify(error: Exception, draft: ReplyDraft) -> ModelError:
    """Return the error of our vocabulary for anything that the call raised."""
    if isinstance(error, ModelError):
        return error
    openai = import_library()
    match error:
        case TimeoutError() | openai.APITimeoutError() | httpx2.TimeoutException():
            return draft.timeout_error()
        case openai.APIConnectionError() | httpx2.TransportError():
            return draft.connection_error(error if draft.opened else error.__cause__ or error)
        case openai.APIStatusError():
            draft.request_id = error.request_id or draft.request_id
            status, headers = error.status_code, error.response.headers
            return draft.provider_error(error.body, status=status, headers=headers, codes=_CODES)
        case openai.APIResponseValidationError() | httpx2.DecodingError() | httpx2.StreamError():
            return draft.unreadable_error(error)
        case openai.APIError():
            return draft.provider_error(error.body or error.message, codes=_CODES)
        case _:
            return draft.unforeseen_error(error)
