"""Adapter for Amazon Bedrock's Converse API, streamed.

botocore is synchronous, and so are its streams: each call reads in a thread of its own and hands its events
to the event loop. A stream that was cut ends there without any error. Only `messageStop` and `metadata`
together make an answer.
"""

import asyncio
import base64
import json
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, cast

import botocore.exceptions as boto_errors
import urllib3.exceptions
from botocore.eventstream import ParserError
from botocore.parsers import ResponseParserError

from perdure.errors import ErrorKind, ModelError
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, digest
from perdure.providers import CallDeadline, ReplyDraft, read_count, read_error

from ._aws_credentials import credentials_failure
from ._bedrock_client import BODY, BedrockClients
from ._bedrock_families import is_streamed
from ._bedrock_request import read_config, render_body

_STOPS: dict[str, ModelStop] = {
    "end_turn": "end_turn",
    "tool_use": "tool_calls",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "guardrail_intervened": "guardrail",
    "content_filtered": "refusal",
    "model_context_window_exceeded": "context_overflow",
}

_CODES: dict[str, ErrorKind] = {
    "throttlingException": "rate_limited",
    "tooManyRequestsException": "rate_limited",
    "serviceQuotaExceededException": "payment",
    # It comes with status 429, but the model is only loading: slowing down would not help.
    "modelNotReadyException": "overloaded",
    "modelTimeoutException": "timeout",
    "internalServerException": "overloaded",
    "serviceUnavailableException": "overloaded",
    "modelErrorException": "overloaded",
    "modelStreamErrorException": "stream_cut",
    "validationException": "bad_request",
    "accessDeniedException": "authentication",
    "unrecognizedClientException": "authentication",
    "expiredTokenException": "authentication",
    "invalidSignatureException": "authentication",
    "resourceNotFoundException": "not_found",
}


class BedrockModel:
    """Models of Bedrock; credentials come from AWS's usual chain.

    `connections` is how many calls keep their connection for the next one.
    """

    def __init__(
        self, region: str | None = None, endpoint_url: str | None = None, *, connections: int = 64
    ) -> None:
        self._clients = BedrockClients(region, endpoint_url, connections)

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, a missing region, and missing credentials.

        Looks credentials up once, which may ask the machine's metadata service.
        """
        self._clients.find_region(config, read_config(config).region)
        self._clients.check_credentials()

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Stream one call, without retries."""
        options = read_config(request.config)
        region = self._clients.find_region(request.config, options.region)
        arguments, body = render_body(request, options)
        # The model's id is sent in the address.
        draft = ReplyDraft(request, digest([request.config.model, body.digest]))
        deadline = CallDeadline(request.config)
        arguments[BODY] = body.json
        streamed = is_streamed(request.config, arguments, options.stream)
        find_client = partial(self._clients.get, region, options.base_url, request.config.timeout)
        open_stream = partial(_open_stream, find_client, arguments, streamed=streamed)
        call = _ThreadedCall(open_stream, asyncio.get_running_loop())
        call.start()
        try:
            while (event := await deadline.wait_for_data(call.next_event())) is not None:
                # The rest is read for the sake of the connection.
                for delta in () if draft.complete else _fold(event, draft):
                    yield delta
            yield _finish(draft)
        except Exception as error:
            failure = _classify(error, draft)
            if failure.kind == "authentication":
                self._clients.forget()
            raise failure from error
        finally:
            call.close()

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        self._clients.close()


def _open_stream(find_client: Callable[[], Any], arguments: dict[str, Any], *, streamed: bool) -> Any:
    """Call the provider; an answer that comes whole takes the form of a stream."""
    client = find_client()
    if streamed:
        return client.converse_stream(**arguments)
    answer = client.converse(**arguments)
    opened = {"RequestId": answer["ResponseMetadata"].get("RequestId")}
    return {"ResponseMetadata": opened, "stream": _WholeAnswer(answer)}


class _WholeAnswer:
    """Answer that came whole, in the place of a stream: its only event."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self._answer = answer
        self._raw_stream = self

    def __iter__(self) -> Iterator[dict[str, Any]]:
        yield {"whole": self._answer}

    def shutdown(self) -> None:
        """Do nothing: the connection is free already."""

    def close(self) -> None:
        """Do nothing, as `shutdown`."""


class _ThreadedCall:
    """Converse call that a daemon thread reads; its events come out in the loop, in order.

    The thread is the call's own. Waiting calls would fill up a pool: the default one has six threads on a
    machine of two cores.
    """

    def __init__(self, open_stream: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._open_stream = open_stream
        self._loop = loop
        self._arrived: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        self._lock = threading.Lock()
        self._stream: Any = None
        self._closed = False

    def start(self) -> None:
        """Start the thread that calls and reads."""
        threading.Thread(target=self._read, name="bedrock-call", daemon=True).start()

    async def next_event(self) -> dict[str, Any] | None:
        """Return the next event, or None at the end, complete or not; raise what the thread raised."""
        item = await self._arrived.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Break the connection, from any thread; a call that waits for its answer is broken when it comes."""
        with self._lock:
            self._closed = True
            if self._stream is not None:
                # close() would wait for the thread that reads. Shutting the socket down wakes the thread,
                # which then closes the connection itself.
                with suppress(ValueError, RuntimeError, OSError):
                    self._stream._raw_stream.shutdown()

    def _read(self) -> None:
        try:
            answer = self._call_provider()
            meta = answer["ResponseMetadata"]
            if self._adopt(answer["stream"]):
                self._put({"opened": meta.get("RequestId")})
                for event in _events(answer["stream"], meta.get("HTTPHeaders") or {}):
                    # A socket that was shut down still hands out what has arrived.
                    if self._closed:
                        break
                    self._put(event)
            self._put(None)
        except Exception as error:
            self._put(error)
        finally:
            self._release()

    def _call_provider(self) -> Any:
        try:
            return self._open_stream()
        except (AttributeError, LookupError, TypeError, UnicodeError) as error:
            # botocore takes the body of a refusal for a JSON object; a proxy may send anything.
            raise ResponseParserError(f"{type(error).__name__}: {error}") from error

    def _adopt(self, stream: Any) -> bool:
        with self._lock:
            self._stream = stream
            return not self._closed

    def _release(self) -> None:
        with self._lock:
            stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()

    def _put(self, item: dict[str, Any] | Exception | None) -> None:
        # The loop may be closed by now; then nothing reads the queue.
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)


def _events(stream: Any, headers: dict[str, str]) -> Iterable[dict[str, Any]]:
    """Yield the events of a stream; of a gateway that does not stream, the whole answer as one."""
    if "json" in headers.get("content-type", ""):
        yield {"whole": json.loads(stream._raw_stream.read())}
        return
    if isinstance(stream, _WholeAnswer):
        yield from stream
        return
    for event in stream._event_generator:
        code = event.headers.get(":exception-type")
        # Of an exception that it does not know, botocore's own iterator loses the words.
        parsed = stream._parse_event(event) if code is None else {"exception": code, "body": event.payload}
        if parsed:
            yield parsed


# -- the answer


def _fold(event: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Fold an event into the draft, and yield the events for it."""
    match event:
        case {"opened": request_id}:
            draft.open(request_id)
        case {"exception": code, "body": body}:
            raise draft.provider_error({"code": code, "message": read_error(body).words}, codes=_CODES)
        case {"whole": answer} if isinstance(answer, dict):
            yield from _fold_whole(cast("dict[str, Any]", answer), draft)
        case {"contentBlockStart": {"contentBlockIndex": index, "start": start}}:
            _begin_block(index, start, draft)
        case {"contentBlockDelta": {"contentBlockIndex": index, "delta": delta}}:
            yield from _extend_block(index, delta, draft)
        case {"contentBlockStop": {"contentBlockIndex": index}}:
            draft.end(index)
        case {"messageStop": {"stopReason": stop}}:
            draft.stop = stop
        case {"metadata": {"usage": usage}}:
            _count(usage, draft)
            draft.complete = True
        case {"metadata": _}:
            draft.complete = True
        case _:
            # messageStart, and events that later versions add.
            pass


def _fold_whole(answer: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    """Fold an answer that came whole: that of `Converse`, from a server that does not stream."""
    if "output" not in answer:
        raise draft.provider_error(answer, codes=_CODES)
    blocks: list[Any] = answer["output"]["message"].get("content") or []
    for index, block in enumerate(blocks):
        if not isinstance(block, dict):
            raise TypeError(f"a content block is no object but a {type(block).__name__}")
        yield from _fold_block(index, cast("dict[str, Any]", block), draft)
    draft.stop = answer.get("stopReason")
    _count(answer.get("usage"), draft)
    draft.complete = True


def _fold_block(index: int, block: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    match block:
        case {"toolUse": call} if isinstance(call, dict):
            _begin_block(index, {"toolUse": call}, draft)
            yield from draft.append_arguments(index, cast("dict[str, Any]", call).get("input"))
        case {"reasoningContent": {"reasoningText": thought}} if isinstance(thought, dict):
            texts = cast("dict[str, Any]", thought)
            for key in ("text", "signature"):
                yield from _extend_block(index, {"reasoningContent": {key: texts.get(key)}}, draft)
        case _:
            yield from _extend_block(index, block, draft)


def _begin_block(index: int, start: dict[str, Any], draft: ReplyDraft) -> None:
    match start:
        case {"toolUse": {"toolUseId": id_, "name": name}}:
            draft.begin(index, "tool_call", call_id=id_, name=name)
        case _:
            # A block of a kind that later versions add: its pieces are passed over too.
            pass


def _extend_block(index: int, delta: dict[str, Any], draft: ReplyDraft) -> Iterable[ModelEvent]:
    match delta:
        case {"text": text}:
            return draft.append(draft.block(index, "text"), text)
        case {"toolUse": {"input": piece}}:
            return draft.append_arguments(index, piece)
        case {"reasoningContent": {"text": text}}:
            return draft.append(draft.block(index, "thinking"), text)
        case {"reasoningContent": {"signature": signature}}:
            draft.block(index, "thinking").signature = signature
        case {"reasoningContent": {"redactedContent": bytes(data)}}:
            draft.block(index, "thinking").redacted = base64.b64encode(data).decode()
        case _:
            # Text goes back without its citations. Other deltas belong to blocks that later versions add.
            pass
    return ()


def _count(usage: Any, draft: ReplyDraft) -> None:
    counted = draft.merge_counts(usage)
    written = read_count(counted.get("cacheWriteInputTokens")) or 0
    # The part of `written` that is kept for an hour has a price of its own.
    details: Any = counted.get("cacheDetails")
    listed = list[Any](details) if isinstance(details, list) else []  # pyright: ignore[reportUnknownArgumentType]
    parts = [cast("dict[str, Any]", part) for part in listed if isinstance(part, dict)]
    an_hour = [read_count(part.get("inputTokens")) or 0 for part in parts if part.get("ttl") == "1h"]
    written_1h = min(sum(an_hour), written)
    draft.count_tokens(
        final=True,
        input_tokens=counted.get("inputTokens"),
        cache_read=counted.get("cacheReadInputTokens"),
        cache_write=written - written_1h,
        cache_write_1h=written_1h,
        output_tokens=counted.get("outputTokens"),
    )


def _finish(draft: ReplyDraft) -> ModelEvent:
    if draft.stop is None or not draft.complete:
        raise draft.cut_error()
    return draft.reply(_STOPS)


# -- errors


def _classify(error: Exception, draft: ReplyDraft) -> ModelError:
    """Return the error of our vocabulary for anything that the call raised."""
    match error:
        case ModelError():
            return error
        case boto_errors.ClientError():
            return _classify_refusal(error, draft)
        case (
            TimeoutError()
            | boto_errors.ReadTimeoutError()
            | boto_errors.ConnectTimeoutError()
            | urllib3.exceptions.TimeoutError()
        ):
            return draft.timeout_error()
        case boto_errors.HTTPClientError() | boto_errors.ConnectionError():
            return draft.error("connection", f"the provider was not reached: {error}")
        case urllib3.exceptions.HTTPError():
            # botocore passes on what breaks in the middle of a stream as it is.
            return draft.error("stream_cut", f"the connection broke in the middle of the answer: {error}")
        case _:
            return _classify_local(error, draft)


def _classify_local(error: Exception, draft: ReplyDraft) -> ModelError:
    """Return the error for a failure on our side of the connection."""
    # Credentials expire, and are renewed, while a request is signed.
    failure = credentials_failure(error) if isinstance(error, boto_errors.BotoCoreError) else None
    if failure is not None:
        return draft.error(failure.kind, str(failure))
    match error:
        case boto_errors.ParamValidationError():
            return draft.error("bad_request", str(error))
        case ResponseParserError() | ParserError():
            return draft.unreadable_error(error)
        case _:
            return draft.unforeseen_error(error)


def _classify_refusal(error: boto_errors.ClientError, draft: ReplyDraft) -> ModelError:
    answer = cast("dict[str, Any]", error.response)
    meta: dict[str, Any] = answer.get("ResponseMetadata", {})
    code, reason = answer["Error"].get("Code", ""), answer["Error"].get("Message", "")
    draft.request_id = meta.get("RequestId") or draft.request_id
    headers: dict[str, str] = meta.get("HTTPHeaders", {})
    # AWS's own header counts in milliseconds.
    if "x-amz-retry-after" in headers:
        headers = {"retry-after-ms": headers["x-amz-retry-after"]} | headers
    # botocore gives an error within a stream the status 400.
    in_stream = isinstance(error, boto_errors.EventStreamError)
    status = None if in_stream else meta.get("HTTPStatusCode")
    body = {"message": reason, "code": code}
    return draft.provider_error(body, status=status, headers=headers, codes=_CODES)
