"""Functions of graphs, and long answers: what a run of agents does itself."""

import asyncio
import contextvars
import functools
import inspect
from collections.abc import Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from datetime import timedelta
from hashlib import sha256
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json
from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure.blobs import BlobStore
from perdure.errors import RetryableToolError
from perdure.graph import Graph, NodeInput
from perdure.messages import Text
from perdure.texts import describe_error, truncate_middle
from perdure.wire.effects import KeepText, KeptText, NodeCall, Progress
from perdure.wire.names import CALL_NODE, KEEP_TEXT

from .content.redact import redact
from .content.results import to_content
from .heartbeat import Heartbeats
from .traffic.transient_errors import is_transient

_BEAT = timedelta(seconds=1)


@dataclass(frozen=True, kw_only=True)
class NodeCalls:
    """The functions of the graphs this worker serves."""

    graphs: Mapping[str, Graph]
    blobs: BlobStore
    executor: Executor

    @activity.defn(name=CALL_NODE)
    async def call_node(self, want: NodeCall) -> Any:
        """Call the function; gives what it gave, as JSON.

        Raises:
            ApplicationError: retryable for what may pass: see `passing`.

        """
        function = self._function(want)
        given = NodeInput.model_validate({**want.input, "idempotency_key": _key(want)})

        def progress(seq: int, window: int) -> Progress:
            return Progress(call=want.key, attempt=activity.info().attempt, seq=seq)

        try:
            async with Heartbeats(progress, _BEAT):
                value = await self._called(function, given)
            return _readable(value)
        except Exception as error:
            raise _failure(error) from None

    def _function(self, want: NodeCall) -> Any:
        graph = self.graphs.get(want.graph)
        function = graph.code().functions.get(want.node) if graph else None
        if function is None:  # another worker may have it: a deploy is under way
            raise ApplicationError(
                f"the function {want.node!r} of graph {want.graph!r} is not on this worker"
            )
        return function

    async def _called(self, function: Any, given: NodeInput) -> Any:
        if inspect.iscoroutinefunction(function):
            return await function(given)
        call = functools.partial(contextvars.copy_context().run, function, given)
        value = await asyncio.get_running_loop().run_in_executor(self.executor, call)
        return await value if asyncio.iscoroutine(value) else value

    @activity.defn(name=KEEP_TEXT)
    async def keep_text(self, want: KeepText) -> KeptText:
        """KeepText a text that is too long for a model, and say what it sees of it."""
        kept = await to_content(want.text, self.blobs, want.preview_bytes)
        shown = "".join(part.text for part in kept.parts if isinstance(part, Text))
        return KeptText(shown=shown, spilled=kept.spilled)


def _readable(value: Any) -> Any:
    """The value as JSON that the workflow can read again: what it cannot would hold it up for ever.

    The function has done its work: that it is not JSON is no reason to do it again.
    """
    try:
        return from_json(to_json(value))
    except Exception as error:
        said = truncate_middle(redact(f"{type(error).__name__}: {error}"), 1000)
        raise ApplicationError(
            f"it is done, but what it gave, a {type(value).__name__}, is not JSON: {said}",
            type="function",
            non_retryable=True,
        ) from None


def _key(want: NodeCall) -> str:
    """The same for every attempt of a visit, of no other; as tools' keys."""
    info = activity.info()
    whole = "\0".join([info.namespace, str(info.workflow_id), str(info.workflow_run_id), want.node, want.key])
    return f"perdure-{sha256(whole.encode()).hexdigest()[:32]}"


def _failure(error: Exception) -> ApplicationError:
    if isinstance(error, ApplicationError):
        return error
    kind = "bug" if isinstance(error, ValidationError) else type(error).__name__
    said = describe_error(error)
    return ApplicationError(
        truncate_middle(redact(f"{type(error).__name__}: {said}")),
        type=kind,
        non_retryable=not is_transient(error),
        next_retry_delay=error.after if isinstance(error, RetryableToolError) else None,
    )
