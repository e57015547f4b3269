"""Models behind Amazon Bedrock's Converse API, streamed.

botocore is synchronous, its streams too: each call reads in a thread of its own and hands its
events to the event loop. A stream that was cut ends there without any error, so only
`messageStop` and `metadata` together make an answer.
"""

import asyncio
import base64
import math
import os
import threading
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from functools import cached_property, partial
from typing import Any, cast

import boto3
import botocore.exceptions as boto_errors
import urllib3.exceptions
from botocore.config import Config
from botocore.eventstream import ParserError
from botocore.parsers import ResponseParserError

from perdure.errors import DefinitionError, ErrorKind, ModelError
from perdure.messages import Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, ModelStop, digest

from ._bedrock_request import BedrockOptions, as_json, body_of, checked
from .draft import Draft, credible
from .shared import is_overflow, kind_of_status, retry_after, within

_STOPS: dict[str, ModelStop] = {
    "end_turn": "end_turn",
    "tool_use": "tool_calls",
    "max_tokens": "max_tokens",
    "stop_sequence": "stop_sequence",
    "guardrail_intervened": "guardrail",
    "content_filtered": "refusal",
    "model_context_window_exceeded": "context_overflow",
}

_BROKEN_STOPS = ("malformed_model_output", "malformed_tool_use")

_CODES: dict[str, ErrorKind] = {
    "throttlingException": "rate_limited",
    "tooManyRequestsException": "rate_limited",
    "serviceQuotaExceededException": "payment",
    "modelNotReadyException": "overloaded",  # 429, but the model is loading: nobody has to slow down
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

_NO_CREDENTIALS = (
    "no AWS credentials found: set AWS_PROFILE, AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, or "
    "AWS_BEARER_TOKEN_BEDROCK in the worker's environment and restart it"
)


class BedrockModel:
    """Models of Bedrock; credentials come from AWS's usual chain.

    `connections` is how many calls keep their connection for the next one.
    """

    def __init__(
        self, region: str | None = None, endpoint_url: str | None = None, *, connections: int = 64
    ) -> None:
        self._region = region
        self._endpoint_url = endpoint_url
        self._connections = connections
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str | None, int], Any] = {}
        self._has_credentials = False

    def check(self, config: ModelConfig) -> None:
        """Refuse unknown options, a missing region, and missing credentials.

        Looks credentials up once, which may ask the machine's metadata service.
        """
        self._region_of(config, checked(config))
        if not self._has_credentials and not os.environ.get("AWS_BEARER_TOKEN_BEDROCK"):
            if _session().get_credentials() is None:
                raise ModelError("authentication", _NO_CREDENTIALS)
            self._has_credentials = True

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """One streamed call, without retries."""
        options = checked(request.config)
        region = self._region_of(request.config, options)
        body = body_of(request, options)
        draft = Draft(request, digest(as_json(body)))
        loop = asyncio.get_running_loop()
        deadline = loop.time() + request.config.timeout.total_seconds()
        call = _Call(partial(self._open, region, options.base_url, request.config.timeout, body), loop)
        call.start()
        try:
            silence = request.config.longest_silence  # the client's own is rounded up
            while (event := await within(min(deadline, loop.time() + silence), call.next())) is not None:
                for shown in _take(event, draft):
                    yield shown
            yield _reply(draft)
        except Exception as error:
            raise _classified(error, draft) from error
        finally:
            call.close()

    async def aclose(self) -> None:
        """Close the connections that are kept open for the next call."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for client in clients:
            client.close()

    def _region_of(self, config: ModelConfig, options: BedrockOptions) -> str:
        region = options.region or self._region or os.environ.get("AWS_REGION") or self._profile_region
        if region is None:
            raise DefinitionError(
                f'{config.name}: no AWS region; set options={{"region": ...}} or AWS_REGION for the worker'
            )
        return region

    @cached_property
    def _profile_region(self) -> str | None:
        return cast("str | None", _session().region_name)

    def _open(self, region: str, base_url: str | None, timeout: timedelta, body: dict[str, Any]) -> Any:
        return self._client(region, base_url or self._endpoint_url, timeout).converse_stream(**body)

    def _client(self, region: str, endpoint: str | None, timeout: timedelta) -> Any:
        """The client for that place. Making one reads files for a while and is not thread-safe."""
        # The whole call is timed in the loop. Rounded up, any number of timeouts need few clients.
        read_timeout = 2 ** math.ceil(math.log2(max(1.0, timeout.total_seconds())))
        key = (region, endpoint, read_timeout)
        with self._lock:
            if key not in self._clients:
                config = Config(
                    retries={"total_max_attempts": 1},  # Temporal retries, and its retries are in history
                    connect_timeout=5,
                    read_timeout=read_timeout,  # 60 s by default: less than a long thought
                    max_pool_connections=self._connections,
                )
                session = _session(region)
                self._clients[key] = session.client("bedrock-runtime", endpoint_url=endpoint, config=config)
            return self._clients[key]


def _session(region: str | None = None) -> Any:
    """A session of its own for each client: the library's shared one is not thread-safe."""
    try:
        return boto3.session.Session(region_name=region)
    except boto_errors.ProfileNotFound as error:
        raise ModelError("authentication", f"{error}; correct AWS_PROFILE and restart the worker") from None


class _Call:
    """One Converse call, read in a daemon thread; its events come out in the loop, in order.

    A thread of its own, as calls that are waited for would fill up a pool: the default one has
    six places on a machine of two cores.
    """

    def __init__(self, open_: Callable[[], Any], loop: asyncio.AbstractEventLoop) -> None:
        self._open = open_
        self._loop = loop
        self._arrived: asyncio.Queue[dict[str, Any] | Exception | None] = asyncio.Queue()
        self._lock = threading.Lock()
        self._stream: Any = None
        self._closed = False

    def start(self) -> None:
        """Begin to call and to read."""
        threading.Thread(target=self._read, name="bedrock-call", daemon=True).start()

    async def next(self) -> dict[str, Any] | None:
        """The next event, or None at the end, complete or not; raises what the thread ran into."""
        item = await self._arrived.get()
        if isinstance(item, Exception):
            raise item
        return item

    def close(self) -> None:
        """Break the connection, from any thread; a call not yet answered is broken when it is."""
        with self._lock:
            self._closed = True
            if self._stream is not None:
                # close() would wait for the thread that reads; shutting the socket down wakes it,
                # and it then closes the connection itself.
                with suppress(ValueError, RuntimeError, OSError):
                    self._stream._raw_stream.shutdown()

    def _read(self) -> None:
        try:
            answer = self._answer()
            if self._adopt(answer["stream"]):
                self._put({"opened": answer["ResponseMetadata"].get("RequestId")})
                for event in answer["stream"]:
                    if self._closed:
                        break  # a socket that was shut down still hands out what has arrived
                    self._put(event)
            self._put(None)
        except Exception as error:
            self._put(error)
        finally:
            self._release()

    def _answer(self) -> Any:
        try:
            return self._open()
        except (AttributeError, LookupError, TypeError, UnicodeError) as error:
            # botocore takes the body of a refusal for an object; that of a proxy may be anything.
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
        with suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)


# -- the answer


def _take(event: dict[str, Any], draft: Draft) -> Iterable[ModelEvent]:
    """Fold one event into the draft; returns what of it is to be shown at once."""
    match event:
        case {"opened": request_id}:
            draft.open(request_id)
        case {"contentBlockStart": {"contentBlockIndex": index, "start": start}}:
            _begin(index, start, draft)
        case {"contentBlockDelta": {"contentBlockIndex": index, "delta": delta}}:
            return _extend(index, delta, draft)
        case {"messageStop": {"stopReason": stop}}:
            draft.stop = stop
        case {"metadata": {"usage": usage}}:
            draft.usage, draft.usage_final, draft.ended = _usage(usage), True, True
        case _:
            pass  # messageStart, contentBlockStop, and what later services add
    return ()


def _begin(index: int, start: dict[str, Any], draft: Draft) -> None:
    match start:
        case {"toolUse": {"toolUseId": id_, "name": name}}:
            block = draft.block(index, "tool_call")
            block.id, block.name = id_, name
        case _:
            raise draft.error("bug", f"unknown content block {sorted(start)!r}")


def _extend(index: int, delta: dict[str, Any], draft: Draft) -> Iterable[ModelEvent]:
    match delta:
        case {"text": text}:
            return draft.add(draft.block(index, "text"), text)
        case {"toolUse": {"input": piece}}:
            return draft.add(draft.block(index, "tool_call"), piece)
        case {"reasoningContent": {"text": text}}:
            return draft.add(draft.block(index, "thinking"), text)
        case {"reasoningContent": {"signature": signature}}:
            draft.block(index, "thinking").signature = signature
        case {"reasoningContent": {"redactedContent": bytes(data)}}:
            draft.block(index, "thinking").redacted = base64.b64encode(data).decode()
        case {"citation": _}:
            pass  # text goes back without its citations
        case _:
            raise draft.error("bug", f"unknown delta {sorted(delta)!r}")
    return ()


def _usage(counted: dict[str, int]) -> Usage:
    return credible(
        Usage(
            input_tokens=counted.get("inputTokens", 0),
            cache_read_tokens=counted.get("cacheReadInputTokens", 0),
            cache_write_tokens=counted.get("cacheWriteInputTokens", 0),
            output_tokens=counted.get("outputTokens", 0),
        )
    )


def _reply(draft: Draft) -> ModelEvent:
    if draft.stop is None or not draft.ended:
        raise draft.cut()
    if draft.stop in _BROKEN_STOPS:
        raise draft.error("malformed_reply", f"the model's output was broken: {draft.stop}")
    return draft.reply(_STOPS)


# -- errors


def _classified(error: Exception, draft: Draft) -> ModelError:
    match error:
        case ModelError():
            return error
        case boto_errors.ClientError():
            return _refused(error, draft)
        case (
            TimeoutError()
            | boto_errors.ReadTimeoutError()
            | boto_errors.ConnectTimeoutError()
            | urllib3.exceptions.TimeoutError()
        ):
            return draft.timed_out()
        case boto_errors.HTTPClientError() | boto_errors.ConnectionError():
            return draft.error("connection", f"the provider was not reached: {error}")
        case urllib3.exceptions.HTTPError():
            # botocore passes on what breaks in the middle of a stream as it is.
            return draft.error("stream_cut", f"the connection broke in the middle of the answer: {error}")
        case _:
            return _classified_locally(error, draft)


def _classified_locally(error: Exception, draft: Draft) -> ModelError:
    """What went wrong on our side of the connection."""
    match error:
        case (
            boto_errors.NoCredentialsError()
            | boto_errors.PartialCredentialsError()
            | boto_errors.CredentialRetrievalError()
            | boto_errors.SSOError()
            | boto_errors.TokenRetrievalError()
        ):
            return draft.error("authentication", f"{_NO_CREDENTIALS} ({error})")
        case boto_errors.ParamValidationError():
            return draft.error("bad_request", str(error))
        case ResponseParserError() | ParserError():
            return draft.error("malformed_reply", f"the answer cannot be read: {error}")
        case _:
            return draft.unknown(error)


def _refused(error: boto_errors.ClientError, draft: Draft) -> ModelError:
    answer = cast("dict[str, Any]", error.response)
    meta: dict[str, Any] = answer.get("ResponseMetadata", {})
    code, said = answer["Error"].get("Code", ""), answer["Error"].get("Message", "")
    draft.request_id = meta.get("RequestId") or draft.request_id
    headers: dict[str, str] = meta.get("HTTPHeaders", {})
    if "x-amz-retry-after" in headers:
        headers = {"retry-after-ms": headers["x-amz-retry-after"]} | headers
    kind = _kind(code, said, meta.get("HTTPStatusCode", 0))
    return draft.error(kind, f"{code}: {said}", retry_after(headers))


def _kind(code: str, said: str, status: int) -> ErrorKind:
    # The same exception comes with a capital as an answer and without one in a stream.
    kind = _CODES.get(code[:1].lower() + code[1:]) or kind_of_status(status)
    if kind == "bad_request" and is_overflow(said):
        return "context_overflow"
    if kind == "bad_request" and "model identifier is invalid" in said:
        return "not_found"
    return kind
