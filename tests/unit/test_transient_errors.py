"""Errors of HTTP libraries on a dead, a silent and a cut connection: transient, or an answer."""

import socket
import threading
from collections.abc import Callable, Iterator

import boto3
import httpx2
import pytest
import requests
import urllib3
from botocore.config import Config

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


LIBRARIES = [_with_httpx2, _with_requests, _with_urllib3, _with_urllib3_once, _with_boto3]


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


@pytest.mark.parametrize("call", [_with_httpx2, _with_requests, _with_urllib3_once, _with_boto3])
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


@pytest.mark.parametrize("call", [_with_httpx2, _with_requests, _with_boto3])
def test_error_status_is_not_transient(call: Callable[[str], object], server: socket.socket) -> None:
    server.listen()
    refusal = b"HTTP/1.1 403 Forbidden\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
    threading.Thread(target=_answer, args=(server, refusal), daemon=True).start()
    error = _raised(call, server)
    assert not is_transient(error)
    assert not may_have_taken_effect(error)


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
