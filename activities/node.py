"""Node calls: the activities of swarms and graphs. They run graph functions and store long texts.

A graph function's result goes to the next nodes, and not to a model. So a failure here fails the node,
while a tool's failure becomes text: see `tool`.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json
from temporalio import activity
from temporalio.exceptions import ApplicationError

from perdure.blobs import BlobStore
from perdure.delays import sensible_delay
from perdure.errors import RetryableToolError
from perdure.graph import Graph, NodeInput
from perdure.messages import Text
from perdure.texts import describe_error
from perdure.wire.effects import FUNCTION_ATTEMPTS, KeepText, KeptText, NodeCall, Progress
from perdure.wire.names import CALL_NODE, KEEP_TEXT
from perdure.wire.uncertain import MAY_HAVE_TAKEN_EFFECT, join_sentences

from .content.redact import mask_value, redact_and_cut
from .content.results import to_content
from .elsewhere import not_served
from .function_errors import log_function_error
from .heartbeat import Heartbeats, last_progress, was_cancelled
from .resources import WorkerResources
from .threads import FunctionThreads, call_function
from .traffic.transient_errors import is_transient, may_have_taken_effect

_HEARTBEAT_INTERVAL = timedelta(seconds=1)
_LONGEST_DETAIL = 1000
"""Characters of an error's message within another message."""


@dataclass(frozen=True, kw_only=True)
class NodeCalls:
    """Activities `call_node` and `keep_text`, with the functions of the graphs that this worker serves."""

    graphs: Mapping[str, Graph]
    blobs: BlobStore
    threads: FunctionThreads
    resources: WorkerResources = field(default_factory=WorkerResources)

    @activity.defn(name=CALL_NODE)
    async def call_node(self, call: NodeCall) -> Any:
        """Call the function once, and return its value as JSON.

        Raises:
            ApplicationError: retryable for transient errors, see `traffic.transient_errors`.

        """
        earlier = last_progress()
        failures = earlier.failures if earlier else 0
        attempt = call.earlier_attempts + activity.info().attempt
        given = {**call.input, "attempt": attempt, "resources": self.resources.of(call.graph)}
        node_input = NodeInput.model_validate(given)

        def progress(seq: int, window: int) -> Progress:
            return Progress(call=call.key, attempt=activity.info().attempt, seq=seq, failures=failures)

        function = self._find_function(call)
        if function is None:
            message = f"the function {call.node!r} of graph {call.graph!r} is not on this worker"
            raise not_served(message, progress(0, 0), type="function")
        try:
            async with Heartbeats(progress, _HEARTBEAT_INTERVAL):
                value = await call_function(
                    self.threads,
                    f"graph:{call.graph}.{call.node}",
                    partial(function, node_input),
                    is_async=inspect.iscoroutinefunction(function),
                )
            return _to_json(value)
        except BaseException as error:  # `sys.exit` in a function is its failure, and not the worker's end
            if was_cancelled(error):
                raise
            # An attempt whose worker died is no failure of the function, so the failures are counted here.
            failures += 1
            log_function_error(error, f"function of node {call.node!r} of graph {call.graph!r}")
            activity.heartbeat(progress(0, 0))
            raise _failure(error, last=failures >= FUNCTION_ATTEMPTS) from None

    def _find_function(self, call: NodeCall) -> Any:
        graph = self.graphs.get(call.graph)
        return graph.code().functions.get(call.node) if graph else None

    @activity.defn(name=KEEP_TEXT)
    async def keep_text(self, request: KeepText) -> KeptText:
        """Store a text that is too long for a model, and return the part of it that the model sees."""
        content = await to_content(request.text, self.blobs, request.preview_bytes)
        shown = "".join(part.text for part in content.parts if isinstance(part, Text))
        return KeptText(shown=shown, spilled=content.spilled)


def _to_json(value: Any) -> Any:
    """Return the value as JSON that has been written and read again.

    A value that the workflow could not read would block it for ever. It fails here instead, and not
    retryably, because the function has run.
    """
    try:
        return mask_value(from_json(to_json(value)))
    except Exception as error:
        detail = redact_and_cut(f"{type(error).__name__}: {describe_error(error)}", _LONGEST_DETAIL)
        raise ApplicationError(
            f"the function has run, but its value, a {type(value).__name__}, is not JSON: {detail}",
            type="function",
            non_retryable=True,
        ) from None


def _failure(error: BaseException, *, last: bool) -> ApplicationError:
    """Return the function's error for Temporal, secrets masked; retryable if it is transient and not the last."""
    if isinstance(error, ApplicationError):
        return ApplicationError(
            error.message,
            *error.details,
            type=error.type,
            non_retryable=last or error.non_retryable,
            next_retry_delay=sensible_delay(error.next_retry_delay),
            category=error.category,
        )
    kind = "bug" if isinstance(error, ValidationError) else type(error).__name__
    message = f"{type(error).__name__}: {describe_error(error)}"
    if is_transient(error) and may_have_taken_effect(error):
        message = join_sentences(message, MAY_HAVE_TAKEN_EFFECT)
    return ApplicationError(
        redact_and_cut(message),
        type=kind,
        non_retryable=last or not is_transient(error),
        next_retry_delay=sensible_delay(error.after) if isinstance(error, RetryableToolError) else None,
    )
