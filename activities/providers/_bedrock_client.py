"""Clients of Bedrock: regions, addresses and credentials. All of it may block, and is used in a call's own thread."""

import math
import os
import threading
from datetime import timedelta
from functools import cached_property
from typing import Any, Final, cast

import boto3
import botocore.exceptions as boto_errors
from botocore.config import Config

from perdure.errors import DefinitionError, ModelError
from perdure.model import ModelConfig

from ._aws_credentials import require_credentials
from ._bedrock_refusals import tell_words

BODY: Final = "PerdureBody"
"""Argument of `converse_stream` that carries the JSON of the request to botocore's events."""


class BedrockClients:
    """Clients by region, address and read timeout, each with the credentials that were found when it was made."""

    def __init__(self, region: str | None, endpoint_url: str | None, connections: int) -> None:
        self._region = region
        self._endpoint_url = endpoint_url
        self._connections = connections
        self._lock = threading.Lock()
        self._clients: dict[tuple[str, str | None, int], tuple[Any, Any]] = {}
        self._looked_up = False

    def find_region(self, config: ModelConfig, region: str | None) -> str:
        """Return the region of a call; `region` is the one that the agent names, if any.

        Raises:
            DefinitionError: none is configured.

        """
        found = region or self._region or os.environ.get("AWS_REGION") or self._profile_region
        if found is None:
            raise DefinitionError(
                f'{config.name}: no AWS region; set options={{"region": ...}} or AWS_REGION for the worker'
            )
        return found

    def check_credentials(self) -> None:
        """Look the credentials up, the first time that this is called; later each call finds out in its thread.

        Raises:
            ModelError: as `require_credentials` does.

        """
        if self._looked_up or os.environ.get("AWS_BEARER_TOKEN_BEDROCK"):
            return
        self._looked_up = True
        require_credentials(_new_session())

    def get(self, region: str, base_url: str | None, timeout: timedelta) -> Any:
        """Return the client for a call, made on first use, with credentials that are valid for some minutes.

        Raises:
            ModelError: as `require_credentials` does.

        """
        # The call is timed in the loop; this bound only frees the thread. Rounded up, any number of
        # timeouts need few clients.
        read_timeout = 2 ** math.ceil(math.log2(max(1.0, timeout.total_seconds())))
        key = (region, base_url or self._endpoint_url, read_timeout)
        known = self._clients.get(key)
        session = known[0] if known else _new_session(region)
        if not os.environ.get("AWS_BEARER_TOKEN_BEDROCK"):
            require_credentials(session)
        if known:
            return known[1]
        # Making a client reads files for a while, and is not thread-safe.
        with self._lock:
            if key not in self._clients:
                self._clients[key] = session, self._make_client(session, key)
            return self._clients[key][1]

    def forget(self) -> None:
        """Forget the clients, for their credentials were refused: the next call reads those on disk again.

        Calls that are under way keep theirs.
        """
        with self._lock:
            self._clients.clear()

    def close(self) -> None:
        """Close the connections that are kept open for the next call."""
        with self._lock:
            clients, self._clients = list(self._clients.values()), {}
        for _, client in clients:
            client.close()

    @cached_property
    def _profile_region(self) -> str | None:
        return cast("str | None", _new_session().region_name)

    def _make_client(self, session: Any, key: tuple[str, str | None, int]) -> Any:
        _, endpoint, read_timeout = key
        config = Config(
            retries={"total_max_attempts": 1},  # Temporal retries, and its retries are in history
            connect_timeout=5,
            read_timeout=read_timeout,  # 60 s by default: less than a long thought
            max_pool_connections=self._connections,
        )
        client = session.client("bedrock-runtime", endpoint_url=endpoint, config=config)
        for operation in ("ConverseStream", "Converse"):
            client.meta.events.register(f"before-parse.bedrock-runtime.{operation}", tell_words)
            client.meta.events.register(f"provide-client-params.bedrock-runtime.{operation}", _take_body)
            client.meta.events.register(f"before-call.bedrock-runtime.{operation}", _set_body)
        return client


def _take_body(params: dict[str, Any], context: dict[str, Any], **_: Any) -> dict[str, Any]:
    """Put the rendered body aside: botocore checks and writes the other arguments only."""
    context[BODY] = params[BODY]
    return {name: value for name, value in params.items() if name != BODY}


def _set_body(params: dict[str, Any], context: dict[str, Any], **_: Any) -> None:
    """Send the rendered body in place of the one that botocore has written. It is signed after this."""
    params["body"] = context[BODY]


def _new_session(region: str | None = None) -> Any:
    # A session for each client: the library's shared one is not thread-safe.
    try:
        return boto3.session.Session(region_name=region)
    except boto_errors.ProfileNotFound as error:
        raise ModelError("authentication", f"{error}; correct AWS_PROFILE and restart the worker") from None
