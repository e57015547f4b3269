"""Adapter for Gemini's own API, over plain HTTP: `streamGenerateContent` with server-sent events."""

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final

from perdure.errors import ErrorKind
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, UsageSoFar
from perdure.providers import Block, Body, ProviderOptions, ReplyDraft, kind_of_error, read_count, read_error
from perdure.providers.draft import BlockKind

from ._gemini_request import SIGNATURE, GeminiOptions, build_body, read_config, render_body
from .http import HttpModel
from .keys import KeySource, ProviderKey

_ADDRESS: Final = "https://generativelanguage.googleapis.com/v1beta"

_REFUSALS: Final = ("IMAGE_SAFETY", "IMAGE_PROHIBITED_CONTENT", "IMAGE_RECITATION")
"""Stop reasons of its filters, beside those that all providers share."""

_CODES: Final[Mapping[str, ErrorKind]] = {
    "API_KEY_INVALID": "authentication",
    # Sent by themselves, in the middle of answers, when a server goes down.
    "CANCELLED": "overloaded",
    "ABORTED": "overloaded",
}


class GeminiModel(HttpModel):
    """Models of Gemini; the key is `api_key`, or a function that gives it, or comes from the environment."""

    path = "/models"
    stops: ClassVar[Mapping[str, ModelStop]] = dict.fromkeys(_REFUSALS, "refusal")
    options = GeminiOptions

    def __init__(self, api_key: KeySource = None, base_url: str | None = None) -> None:
        super().__init__(base_url or _ADDRESS)
        self._key = ProviderKey("Gemini", api_key, "GEMINI_API_KEY", "GOOGLE_API_KEY")

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, settings that the model does not take, and a missing key."""
        read_config(config)
        self._key.check()

    def path_of(self, config: ModelConfig) -> str:
        """Return the path of a call, which names the model."""
        return f"{self.path}/{config.model}:streamGenerateContent?alt=sse"

    async def headers_of(self, address: str, options: ProviderOptions) -> Mapping[str, str]:
        """Return the key of the moment."""
        return {"x-goog-api-key": await self._key.read()}

    def build_body(self, request: ModelRequest) -> dict[str, Any]:
        """Return the request in Gemini's format."""
        return build_body(request, read_config(request.config))

    def render_body(self, request: ModelRequest, options: ProviderOptions) -> Body:
        """Return the JSON to send, with the fields of `extra_body` in it, also those within its objects."""
        return render_body(request, read_config(request.config))

    def kind_of_refusal(self, status: int, text: str) -> ErrorKind:
        """Return the error kind of an answer that is not 200."""
        return kind_of_error(read_error(text, status), _CODES)

    def fold(self, piece: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
        """Fold an object of the answer into the draft, and yield the events for it."""
        if "error" in piece:
            raise draft.provider_error(piece, codes=_CODES)
        draft.model = piece.get("modelVersion") or draft.model
        if isinstance(named := piece.get("responseId"), str):
            draft.request_id = draft.request_id or named
        if usage := piece.get("usageMetadata"):
            is_first = draft.usage is None
            _count(usage, draft, final=False)
            if is_first and draft.usage is not None:
                yield UsageSoFar(usage=draft.usage)
        candidates: list[dict[str, Any]] = piece.get("candidates") or []
        candidate = candidates[0] if candidates else {}
        content: dict[str, Any] = candidate.get("content") or {}
        parts: list[Any] = content.get("parts") or []
        for part in parts:
            yield from _extend(part, draft)
        feedback: dict[str, Any] = piece.get("promptFeedback") or {}
        if reason := feedback.get("blockReason"):
            words = feedback.get("blockReasonMessage") or "a filter of the provider refused the prompt"
            raise draft.error("filtered", f"{reason}: {words}")
        if reason := candidate.get("finishReason"):
            _finish(reason, candidate.get("finishMessage"), draft)


def _count(usage: object, draft: ReplyDraft, *, final: bool) -> None:
    """Note the counts, which each piece carries for the reply so far."""
    counted = {name: read_count(value) for name, value in draft.merge_counts(usage).items()}
    prompt, cached = counted.get("promptTokenCount"), counted.get("cachedContentTokenCount") or 0
    tools = counted.get("toolUsePromptTokenCount") or 0
    written, thought = counted.get("candidatesTokenCount"), counted.get("thoughtsTokenCount")
    # Gemini's prompt tokens include the cached ones, and its candidates' tokens no thoughts.
    draft.count_tokens(
        final=final,
        input_tokens=None if prompt is None else max(0, prompt - cached) + tools,
        cache_read=cached,
        output_tokens=None if written is None and thought is None else (written or 0) + (thought or 0),
    )


def _extend(part: Any, draft: ReplyDraft) -> Iterable[ModelEvent]:
    match part:
        case {"functionCall": dict()}:
            function: dict[str, Any] = part["functionCall"]
            block = draft.begin(
                len(draft.blocks), "tool_call", call_id=function.get("id"), name=function.get("name")
            )
            if signature := part.get(SIGNATURE):
                block.extra[SIGNATURE] = signature
            return draft.append(block, function.get("args") or {})
        case {"text": text, "thought": True}:
            return draft.append(_open_block("thinking", draft), text)
        case {"text": text}:
            return draft.append(_text_block(part.get(SIGNATURE), draft), text)
        case dict():
            # Code that it ran on its side, and what comes in later versions: it goes back as it came.
            draft.begin(len(draft.blocks), "opaque").data = part
        case _:
            raise TypeError(f"a part is no object but a {type(part).__name__}")
    return ()


def _text_block(signature: str | None, draft: ReplyDraft) -> Block:
    """Return the block of a text; one that is signed stands for itself, behind a thought without words."""
    if signature is None:
        return _open_block("text", draft)
    draft.begin(len(draft.blocks), "thinking").signature = signature
    signed = draft.begin(len(draft.blocks), "text")
    signed.ended = True
    return signed


def _open_block(kind: BlockKind, draft: ReplyDraft) -> Block:
    """Return the block that the last piece went into, if this piece continues it; else a new one."""
    last = draft.blocks[-1] if draft.blocks else None
    if last is not None and last.kind == kind and not last.ended and last.signature is None:
        return last
    return draft.begin(len(draft.blocks), kind)


def _finish(reason: str, message: object, draft: ReplyDraft) -> None:
    if reason == "MISSING_THOUGHT_SIGNATURE":
        # The request is at fault: without the calls' signatures it is refused like this each time.
        raise draft.error("bad_request", f"{reason}: {message or 'a call came back without its signature'}")
    if draft.usage is not None:
        _count(None, draft, final=True)
    draft.finish("tool_calls" if reason == "STOP" and draft.has_calls else reason, None)
