"""Errors of HTTP libraries on a dead, a silent and a cut connection: transient, or an answer."""

import errno
import http.client
import json
import socket
import ssl
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator

import boto3
import httpx2
import pytest
import requests
import urllib3
from botocore.config import Config
from temporalio.exceptions import ApplicationError

from perdure import FatalToolError, RetryableToolError
from perdure.activities.traffic.transient_errors import is_timeout, is_transient, may_have_taken_effect

_SOON = 0.2


def _with_httpx2(url: str) -> object:
    return httpx2.get(url, timeout=_SOON).raise_for_status().text


def _with_requests(url: str) -> None:
    requests.get(url, timeout=_SOON).raise_for_status()


def _with_urllib3(url: str) -> object:
    return urllib3.request("GET", url, timeout=_SOON, retries=1)


def _with_urllib3_once(url: str) -> object:
    return urllib3.request("GET", url, timeout=_SOON, retries=False)


def _with_boto3(url: str) -> object:
    config = Config(connect_timeout=_SOON, read_timeout=_SOON, retries={"total_max_attempts": 1})
    session = boto3.Session(aws_access_key_id="x", aws_secret_access_key="x", region_name="x")
    return session.client("s3", endpoint_url=url, config=config).list_buckets()


def _with_urllib(url: str) -> object:
    with urllib.request.urlopen(url, timeout=_SOON) as answer:
        return answer.read()


def _with_http_client(url: str) -> object:
    line = http.client.HTTPConnection(url.split("/")[2], timeout=_SOON)
    try:
        line.request("POST", "/", body=b"x")
        with line.getresponse() as answer:
            return answer.read()
    finally:
        line.close()


LIBRARIES = [
    _with_httpx2,
    _with_requests,
    _with_urllib3,
    _with_urllib3_once,
    _with_boto3,
    _with_urllib,
    _with_http_client,
]


def _answer(server: socket.socket, answer: bytes) -> None:
    while True:
        try:
            line, _ = server.accept()
        except OSError:
            return
        line.recv(4096)
        line.sendall(answer)
        line.close()


@pytest.fixture
def server() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        yield server


def _raised(call: Callable[[str], object], server: socket.socket) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - which one is each library's own matter
        call(f"http://127.0.0.1:{server.getsockname()[1]}/")
    if isinstance(caught.value, urllib.error.HTTPError):
        caught.value.close()
    return caught.value


@pytest.mark.parametrize("call", LIBRARIES)
def test_refused_connection_had_no_effect(call: Callable[[str], object], server: socket.socket) -> None:
    """It is transient, and the request was never sent."""
    error = _raised(call, server)
    assert is_transient(error)
    assert not may_have_taken_effect(error)


@pytest.mark.parametrize("call", LIBRARIES)
def test_read_timeout_may_have_effect(call: Callable[[str], object], server: socket.socket) -> None:
    server.listen()
    error = _raised(call, server)
    assert is_transient(error)
    assert may_have_taken_effect(error)


@pytest.mark.parametrize("call", [call for call in LIBRARIES if call is not _with_urllib3])
def test_read_timeout_is_a_timeout(call: Callable[[str], object], server: socket.socket) -> None:
    server.listen()
    assert is_timeout(_raised(call, server))


@pytest.mark.parametrize("call", LIBRARIES)
def test_cut_connection_may_have_effect(call: Callable[[str], object], server: socket.socket) -> None:
    server.listen()
    threading.Thread(target=_answer, args=(server, b""), daemon=True).start()
    error = _raised(call, server)
    assert is_transient(error)
    assert may_have_taken_effect(error)


@pytest.mark.parametrize("call", [call for call in LIBRARIES if call is not _with_boto3])
def test_cut_answer_may_have_effect(call: Callable[[str], object], server: socket.socket) -> None:
    server.listen()
    half = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\nconnection: close\r\n\r\nhalf"
    threading.Thread(target=_answer, args=(server, half), daemon=True).start()
    error = _raised(call, server)
    assert is_transient(error)
    assert may_have_taken_effect(error)


@pytest.mark.parametrize("call", [_with_httpx2, _with_requests, _with_boto3, _with_urllib])
@pytest.mark.parametrize(("status", "refused"), [(400, True), (403, True), (409, False), (500, False)])
def test_error_status_is_not_transient(
    call: Callable[[str], object], server: socket.socket, status: int, refused: bool
) -> None:
    """A refusal had no effect. After an error of the server nobody knows."""
    server.listen()
    answer = f"HTTP/1.1 {status} No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n".encode()
    threading.Thread(target=_answer, args=(server, answer), daemon=True).start()
    error = _raised(call, server)
    assert not is_transient(error)
    assert may_have_taken_effect(error) is not refused


def test_cut_handshake_is_transient(server: socket.socket) -> None:
    """It may be any end of a TLS connection, so the call may have had its effect."""
    server.listen()
    threading.Thread(target=_answer, args=(server, b""), daemon=True).start()
    with pytest.raises(urllib.error.URLError) as met:
        _with_urllib(f"https://127.0.0.1:{server.getsockname()[1]}/")
    assert is_transient(met.value)
    assert may_have_taken_effect(met.value)


def _from(error: Exception, cause: BaseException) -> Exception:
    error.__cause__ = cause
    return error


_NO_WAY = OSError(errno.EHOSTUNREACH, "No route to host")
_NO_NAME = socket.gaierror(socket.EAI_NONAME, "Name or service not known")


@pytest.mark.parametrize(
    ("error", "again", "uncertain"),
    [
        (_NO_WAY, True, False),
        (urllib.error.URLError(_NO_WAY), True, False),
        (OSError(errno.ENETUNREACH, "Network is unreachable"), True, False),
        (_NO_NAME, True, False),
        (urllib.error.URLError(_NO_NAME), True, False),
        (urllib.error.URLError(ConnectionRefusedError()), True, False),
        (urllib.error.URLError(TimeoutError("timed out")), True, True),
        (urllib.error.URLError(ssl.SSLEOFError(8, "EOF occurred in violation of protocol")), True, True),
        (urllib.error.URLError(ssl.SSLCertVerificationError("self-signed")), False, False),
        (urllib.error.URLError("unknown url type: htp"), False, True),
        (urllib.error.ContentTooShortError("got only 4 of 9 bytes", (b"", None)), True, True),  # type: ignore[arg-type]
        (http.client.IncompleteRead(b"half", 9), True, True),
        (http.client.RemoteDisconnected("closed"), True, True),
        (http.client.BadStatusLine("?"), True, True),
        (http.client.InvalidURL("a space"), False, False),
        (ExceptionGroup("both", [ConnectionRefusedError(), _NO_NAME]), True, False),
        (ExceptionGroup("both", [ConnectionRefusedError(), TimeoutError()]), True, True),
        (ExceptionGroup("both", [ConnectionRefusedError(), ValueError("what?")]), False, True),
        (json.JSONDecodeError("no JSON", "<html>", 0), False, True),
        (KeyError("id"), False, True),
        (OSError(errno.ENOSPC, "No space left on device"), False, True),
        (_from(RuntimeError("the bank is away"), ConnectionRefusedError()), False, False),
        (_from(RuntimeError("the bank is away"), TimeoutError()), False, True),
        (RetryableToolError("busy"), True, False),
        (_from(RetryableToolError("busy"), TimeoutError()), True, True),
        (FatalToolError("declined"), False, False),
        (_from(FatalToolError("declined"), KeyError("id")), False, False),
        (_from(FatalToolError("no answer"), http.client.IncompleteRead(b"", 9)), False, True),
        (_from(FatalToolError("not there"), _NO_NAME), False, False),
        (ApplicationError("declined", non_retryable=True), False, False),
    ],
    ids=lambda value: repr(value)[:60] if isinstance(value, BaseException) else None,
)
def test_unknown_error_may_have_effect(error: Exception, again: bool, uncertain: bool) -> None:
    """Only an error that is known to come before the request, or to be a refusal, had no effect."""
    assert (is_transient(error), may_have_taken_effect(error)) == (again, uncertain)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (RetryableToolError("busy"), True),
        (FatalToolError("no"), False),
        (ValueError("ConnectionError"), False),
        (type("ConnectionError", (Exception,), {"__module__": "shop.errors"})(), False),
        (OSError("disk"), False),
    ],
)
def test_errors_without_a_library(error: Exception, again: bool) -> None:
    assert is_transient(error) is again


def _goes_on_elsewhere() -> None:
    try:
        raise ConnectionRefusedError("the first one is not there")
    except ConnectionRefusedError:
        raise ConnectionResetError("the second one was, and hung up")  # noqa: B904 - as tools do


def test_handled_error_is_no_cause() -> None:
    """`__context__` names an error that the tool handled; only `__cause__` explains this one."""
    with pytest.raises(ConnectionResetError) as met:
        _goes_on_elsewhere()
    assert may_have_taken_effect(met.value)
