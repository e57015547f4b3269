"""Adapter for OpenAI's Responses API, over plain HTTP.

Nothing depends on state at the provider: each request brings the whole conversation, and the reasoning in encrypted
form. The provider is asked to keep nothing.
"""

import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, Final, cast

from perdure.errors import ErrorKind
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop
from perdure.providers import (
    MODEL_REFUSAL,
    Body,
    ProviderOptions,
    ReplyDraft,
    kind_of_error,
    read_count,
    read_error,
)

from ._openai_servers import ServerKeys
from ._responses_request import ResponsesOptions, build_body, read_config, render_body, sign
from .http import HttpModel
from .keys import KeySource

_ADDRESS: Final = "https://api.openai.com/v1"

_CODES: Final[Mapping[str, ErrorKind]] = {
    "bio_policy": "filtered",
    "misalignment_policy_violation": "filtered",
    "image_content_policy_violation": "filtered",
}


class ResponsesModel(HttpModel):
    """Models of OpenAI, and of other servers that speak its Responses API; the key is that of `openai`."""

    path = "/responses"
    stops: ClassVar[Mapping[str, ModelStop]] = {}
    options = ResponsesOptions

    def __init__(
        self, api_key: KeySource = None, base_url: str | None = None, *, keys: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(base_url or os.environ.get("OPENAI_BASE_URL") or _ADDRESS)
        self._keys = ServerKeys("openai", api_key, keys)

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, settings that the API does not take, and a missing key."""
        self._keys.check(read_config(config).base_url or self._base_url)

    async def headers_of(self, address: str, options: ProviderOptions) -> Mapping[str, str]:
        """Return the key of the moment, and the agent's own headers."""
        own = options.extra_headers if isinstance(options, ResponsesOptions) else {}
        return {"authorization": f"Bearer {await self._keys.read(address)}", **own}

    def build_body(self, request: ModelRequest) -> dict[str, Any]:
        """Return the request in the API's format."""
        return build_body(request, read_config(request.config))

    def render_body(self, request: ModelRequest, options: ProviderOptions) -> Body:
        """Return the JSON to send, with `extra_body` in it."""
        return render_body(request, read_config(request.config))

    def kind_of_refusal(self, status: int, text: str) -> ErrorKind:
        """Return the error kind of an answer that is not 200."""
        return kind_of_error(read_error(text, status), _CODES)

    def fold(self, piece: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
        """Fold an event of the answer into the draft, and return the events to yield for it at once."""
        kind = piece.get("type")
        if kind is None and piece.get("object") == "response":
            return _fold_whole(piece, draft)
        if fold := _FOLDS.get(str(kind)):
            return fold(piece, draft)
        if kind is None and piece.get("error"):
            raise draft.provider_error(piece, codes=_CODES)
        # The API reserves the right to add events.
        return ()


def _fold_whole(response: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Fold an answer that came whole: some servers do not stream."""
    for index, item in enumerate(response.get("output") or ()):
        yield from _end_item({"output_index": index, "item": item}, draft)
    _finish(response, draft)


def _begin(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    draft.model = event["response"].get("model") or draft.model
    return ()


def _begin_item(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    match event["item"]:
        case {"type": "function_call"} as item:
            draft.begin(_key(event), "tool_call", call_id=item.get("call_id"), name=item.get("name"))
        case {"type": "reasoning"}:
            draft.begin(_key(event), "thinking")
        case _:
            pass
    return ()


def _extend_text(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    name = "refusal" if "refusal" in event["type"] else "text"
    return draft.append(draft.block(f"{name} {event['output_index']}", "text"), event["delta"])


def _extend_thought(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    block = draft.block(_key(event), "thinking")
    # A summary comes in sections.
    section = event.get("summary_index") or 0
    begins = block.pieces and block.data.get("section") != section
    block.data["section"] = section
    return draft.append(block, f"\n\n{event['delta']}" if begins else event["delta"])


def _extend_call(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    return draft.append_arguments(_key(event), event["delta"])


def _end_item(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Take from a finished item what has not come in pieces."""
    item, key = event["item"], _key(event)
    match item:
        case {"type": "function_call"}:
            block = draft.block(key, "tool_call")
            block.id, block.name = block.id or item.get("call_id") or "", block.name or item.get("name") or ""
            block.ended = True
            if not block.pieces:
                return draft.append(block, item.get("arguments"))
        case {"type": "reasoning"}:
            block = draft.block(key, "thinking")
            block.signature, block.ended = sign(item), True
            if not block.pieces:
                return draft.append(block, _text_of(item.get("summary") or item.get("content")))
        case {"type": "message"}:
            return _end_message(item, event["output_index"], draft)
        case dict():
            # An item of a tool that runs on the provider's side: it goes back as it came.
            draft.block(key, "opaque").data = item
        case _:
            raise TypeError(f"an item is no object but a {type(item).__name__}")
    return ()


def _end_message(item: dict[str, Any], index: int, draft: ReplyDraft) -> Iterable[ModelEvent]:
    if draft.has(f"text {index}") or draft.has(f"refusal {index}"):
        return
    for content in item.get("content") or ():
        name = "refusal" if content.get("type") == "refusal" else "text"
        yield from draft.append(draft.block(f"{name} {index}", "text"), content.get(name))


def _end(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    _finish(event["response"], draft)
    return ()


def _finish(response: dict[str, Any], draft: ReplyDraft) -> None:
    draft.model = response.get("model") or draft.model
    if response.get("usage"):
        _count(response["usage"], draft)
    status = response.get("status") or "completed"
    if status in ("failed", "cancelled"):
        raise draft.provider_error(response.get("error") or f"the response is {status}", codes=_CODES)
    if status == "incomplete":
        details: dict[str, Any] = response.get("incomplete_details") or {}
        status = details.get("reason") or status
    elif draft.has_calls:
        status = "tool_calls"
    elif any(draft.has(f"refusal {index}") for index in range(len(response.get("output") or draft.blocks))):
        status = MODEL_REFUSAL
    draft.finish(status, None)


def _fail(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    raise draft.provider_error(event.get("error") or event, codes=_CODES)


_FOLDS: Final[Mapping[str, Callable[[dict[str, Any], ReplyDraft], Iterable[ModelEvent]]]] = {
    "response.created": _begin,
    "response.output_item.added": _begin_item,
    "response.output_text.delta": _extend_text,
    "response.refusal.delta": _extend_text,
    "response.reasoning_summary_text.delta": _extend_thought,
    "response.reasoning_text.delta": _extend_thought,
    "response.function_call_arguments.delta": _extend_call,
    "response.output_item.done": _end_item,
    "response.completed": _end,
    "response.incomplete": _end,
    "response.failed": _end,
    "error": _fail,
}


def _key(event: dict[str, Any]) -> str:
    return f"item {event['output_index']}"


def _text_of(contents: Iterable[dict[str, Any]] | None) -> str:
    return "\n\n".join(content.get("text") or "" for content in contents or ())


def _count(usage: object, draft: ReplyDraft) -> None:
    counted = draft.merge_counts(usage)
    details: Any = counted.get("input_tokens_details")
    named = cast("dict[str, Any]", details) if isinstance(details, dict) else {}
    read, written = (
        read_count(named.get("cached_tokens")) or 0,
        read_count(named.get("cache_write_tokens")) or 0,
    )
    prompt = read_count(counted.get("input_tokens"))
    # OpenAI's input tokens include the cached ones; our counts are disjoint.
    draft.count_tokens(
        final=True,
        input_tokens=None if prompt is None else max(0, prompt - read - written),
        cache_read=read,
        cache_write=written,
        output_tokens=counted.get("output_tokens"),
    )
