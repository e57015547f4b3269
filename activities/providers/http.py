"""Base of adapters over plain HTTP: a request in JSON, and its answer as a stream of JSON objects.

A subclass says where to call, writes the request, and folds each object of the answer into the draft. Options, time
limits, refusals and broken connections are the same for all of them, and stand here.
"""

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Iterable, Mapping
from typing import Any, ClassVar

import httpx2

from perdure.errors import ErrorKind, ModelError
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, digest
from perdure.providers import (
    Body,
    CallDeadline,
    ProviderOptions,
    ReplyDraft,
    join_body,
    kind_of_error,
    parse_retry_after,
    read_error,
    read_options,
    read_pieces,
    reject_setting,
)


class HttpModel(ABC):
    """Base of a model provider over plain HTTP; docs/providers.md shows a subclass.

    The provider answers a POST with a JSON object a line, with server-sent events that carry one each, or with one
    whole object.
    """

    path: ClassVar[str]
    """Path of a call, behind the base URL."""
    stops: ClassVar[Mapping[str, ModelStop]]
    """Translation of the provider's stop reasons, where they are not among those that all adapters know."""
    options: ClassVar[type[ProviderOptions]] = ProviderOptions
    """Type of `ModelConfig.options`."""
    unsupported: ClassVar[tuple[str, ...]] = ()
    """Settings of `ModelConfig` that the provider does not take: they are refused and not ignored."""

    def __init__(self, base_url: str, headers: Mapping[str, str] | None = None) -> None:
        self._base_url = base_url
        self._client = httpx2.AsyncClient(headers=dict(headers or {}))

    @abstractmethod
    def build_body(self, request: ModelRequest) -> dict[str, Any]:
        """Return the request in the provider's format."""

    @abstractmethod
    def fold(self, piece: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
        """Fold an object of the answer into the draft, and return the events to yield for it at once."""

    def path_of(self, config: ModelConfig) -> str:
        """Return the path of a call; override where it depends on the model."""
        return self.path

    async def headers_of(self, address: str, options: ProviderOptions) -> Mapping[str, str]:
        """Return further headers of a call to that address; override for keys that are renewed while a worker runs."""
        return {}

    def render_body(self, request: ModelRequest, options: ProviderOptions) -> Body:
        """Return the JSON to send, with `extra_body` in it; override to render each turn of a conversation once."""
        return join_body(self.build_body(request), None, extra=options.extra_body)

    def kind_of_refusal(self, status: int, text: str) -> ErrorKind:
        """Return the error kind of an answer that is not 200; override where the provider says more."""
        return kind_of_error(read_error(text, status))

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, and settings that the provider does not take."""
        read_options(self.options, config)
        for setting in self.unsupported:
            if getattr(config, setting) != ModelConfig.model_fields[setting].default:
                reject_setting(config, setting, "leave it out")

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Stream one call, without retries."""
        options = read_options(self.options, request.config)
        body = self.render_body(request, options)
        # The path may be all that names the model.
        draft = ReplyDraft(request, digest([self.path_of(request.config), body.digest]))
        deadline = CallDeadline(request.config)
        answer: httpx2.Response | None = None
        try:
            sent = await deadline.wait_for(self._build_request(request.config, options, body.json))
            answer = await deadline.wait_for(self._client.send(sent, stream=True))
            if answer.status_code != 200:
                raise await self._read_refusal(answer, draft, deadline)
            draft.open(answer.headers.get("x-request-id"))
            pieces = read_pieces(answer.aiter_bytes())
            while (piece := await deadline.wait_for(anext(pieces, None))) is not None:
                for event in self.fold(piece, draft):
                    yield event
            if not draft.complete:
                raise draft.cut_error()
            yield draft.reply(self.stops)
        except ModelError:
            raise
        except Exception as error:
            raise _classify(error, draft) from error
        finally:
            if answer is not None:
                await answer.aclose()

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        await self._client.aclose()

    async def _build_request(
        self, config: ModelConfig, options: ProviderOptions, body: bytes
    ) -> httpx2.Request:
        address = (options.base_url or self._base_url).rstrip("/")
        # `read` bounds the silence between two bytes.
        timeout = httpx2.Timeout(5.0, read=config.longest_silence)
        headers = {"content-type": "application/json", **await self.headers_of(address, options)}
        url = f"{address}{self.path_of(config)}"
        return self._client.build_request("POST", url, content=body, headers=headers, timeout=timeout)

    async def _read_refusal(
        self, answer: httpx2.Response, draft: ReplyDraft, deadline: CallDeadline
    ) -> ModelError:
        await deadline.wait_for(answer.aread())
        draft.request_id = answer.headers.get("x-request-id")
        refusal = read_error(answer.content, answer.status_code)
        kind = self.kind_of_refusal(answer.status_code, answer.text)
        delay = parse_retry_after(answer.headers)
        return draft.error(kind, refusal.message, delay if delay is not None else refusal.delay)


def _classify(error: Exception, draft: ReplyDraft) -> ModelError:
    match error:
        case TimeoutError() | httpx2.TimeoutException():
            return draft.timeout_error()
        case httpx2.TransportError():
            return draft.connection_error(error)
        case httpx2.DecodingError() | httpx2.StreamError():
            return draft.unreadable_error(error)
        case _:
            return draft.unforeseen_error(error)
