"""Temporal calls on one run: queries, updates, signals, with errors of ours and retries of what gets lost."""

import asyncio
import builtins
import uuid
from collections.abc import AsyncGenerator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, Final, TypeVar

from temporalio.client import (
    Client,
    WorkflowExecutionDescription,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.service import RPCError, RPCStatusCode

from perdure.errors import InvalidRequest, NotReachable, ServerBusy

from .errors import is_lost_update, is_server_busy, no_answer_message, refusal_error, run_error
from .outages import ride_out

_T = TypeVar("_T")

ANSWER_WITHIN: Final = timedelta(seconds=15)
"""Time for a worker to answer a query or an update.

Longer than the timeout of a workflow task, ten seconds. The SDK can lose a workflow task when it evicts a
run that is queried at that moment. The server gives the task out again after its timeout, and then the
query is answered.
"""
# Seconds after which a query is repeated. A worker with the run in its cache answers in a few milliseconds.
_QUERY_AGAIN_AFTER: Final = (0.25, 1.0, 4.0)
# Seconds after which a lost update is sent again.
_UPDATE_AGAIN_AFTER: Final = (0.03, 0.1, 0.3, 1.0)


class RunCalls:
    """Calls on one run, by its id. All of them ride out a server that is away for a minute."""

    def __init__(self, client: Client, run_id: str) -> None:
        self._client = client
        self._id = run_id

    @property
    def handle(self) -> "WorkflowHandle[Any, Any]":
        """Temporal's handle. It follows the run when that continues as new."""
        return self._client.get_workflow_handle(self._id)

    async def describe(self, *, execution_id: str | None = None) -> WorkflowExecutionDescription:
        """Return what the server knows of the run, or of an execution of it; no worker is asked."""
        handle = self._client.get_workflow_handle(self._id, run_id=execution_id)
        async with self.translate_errors():
            return await ride_out(handle.describe)

    async def query(
        self, name: str, result_type: type[_T], *args: Any, execution_id: str | None = None
    ) -> _T:
        """Ask the run's worker, of the newest execution or of a certain one.

        Raises:
            InvalidRequest: the run refused the query.
            NotReachable: no worker answers.

        """

        async def query() -> _T:
            handle = self._client.get_workflow_handle(self._id, run_id=execution_id)
            answer: _T = await handle.query(
                name, args=args, result_type=result_type, rpc_timeout=ANSWER_WITHIN
            )
            return answer

        async with self.translate_errors():
            return await ride_out(lambda: first_answer(query))

    async def signal(self, name: str) -> None:
        """Send a signal without argument. Under an outage it may arrive twice, which must change nothing."""
        async with self.translate_errors():
            await ride_out(lambda: self.handle.signal(name))

    async def update(self, name: str, argument: Any, *, id: str | None = None) -> Any:  # noqa: A002
        """Send an update and return its result. An update that got lost, or was refused, is sent again.

        Raises:
            InvalidRequest: the run refused the update; nothing was changed.
            NotReachable: no worker answers.
            RunEnded: the run has ended.
            ServerBusy: the run has no room for the update now; nothing was changed.

        """
        for pause in (*_UPDATE_AGAIN_AFTER, None):
            # The server takes an update of one id once, so it can be sent again when the connection breaks.
            update_id = id or uuid.uuid4().hex
            try:
                async with self.translate_errors():
                    return await ride_out(lambda: self._execute_update(name, argument, update_id))  # noqa: B023
            except ServerBusy:
                # Few updates of a run are open at a time, and most of them not for long.
                if pause is None:
                    raise
            except WorkflowUpdateFailedError as error:
                if not is_lost_update(error):
                    raise refusal_error(error) from None
            except WorkflowUpdateRPCTimeoutOrCancelledError:
                # The server keeps an update that it has admitted. Only an id makes a second one harmless.
                raise NotReachable(
                    f"{self.no_answer_message()}. The request was delivered and takes effect once a worker "
                    "runs. Send it again only under the same id"
                ) from None
            if pause is not None:
                await asyncio.sleep(pause)
        raise NotReachable(
            f"the worker of run {self._id!r} lost the request {len(_UPDATE_AGAIN_AFTER) + 1} times; "
            "nothing was changed; try again later"
        )

    async def _execute_update(self, name: str, argument: Any, update_id: str) -> Any:
        """Execute the update; one that is refused is tried once more.

        A query may have shown what a workflow task has found that was lost then. The task is repeated together with
        the update, whose check comes first, so the run refuses what it has shown already. After that task it knows
        it. An update that the run had taken is not done again: the server keeps its outcome by its id.
        """
        try:
            return await self._execute_once(name, argument, update_id)
        except WorkflowUpdateFailedError as error:
            if is_lost_update(error) or not isinstance(refusal_error(error), InvalidRequest):
                raise
        return await self._execute_once(name, argument, update_id)

    async def _execute_once(self, name: str, argument: Any, update_id: str) -> Any:
        return await self.handle.execute_update(name, argument, id=update_id, rpc_timeout=ANSWER_WITHIN)

    @asynccontextmanager
    async def translate_errors(self, *, passing: tuple[RPCStatusCode, ...] = ()) -> AsyncGenerator[None]:
        """Raise Temporal's errors as ours, except those of a status in `passing`."""
        try:
            yield
        except RPCError as error:
            if error.status in passing:
                raise
            raise run_error(error, self._id, self._client.namespace, ANSWER_WITHIN.total_seconds()) from error
        except (WorkflowQueryFailedError, WorkflowQueryRejectedError) as error:
            raise InvalidRequest(str(error)) from error
        except builtins.TimeoutError:
            raise NotReachable(self.no_answer_message()) from None

    def no_answer_message(self) -> str:
        """Return the message for a run about which no worker answers."""
        return no_answer_message(self._id, ANSWER_WITHIN.total_seconds())


async def first_answer(
    query: Callable[[], Coroutine[Any, Any, _T]], *, again_after: Sequence[float] = _QUERY_AGAIN_AFTER
) -> _T:
    """Repeat a query while no answer comes, and return the first answer, or raise the first error.

    A query that meets a run between two workflow tasks may wait a second for a worker, or get lost, while
    the next is answered at once.
    """
    first = asyncio.create_task(query())
    pending, pauses = {first}, iter(again_after)
    try:
        while True:
            done, waiting = await asyncio.wait(
                pending, timeout=next(pauses, None), return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                # No room for another query says nothing about the first: it is still on its way.
                if task is first or not is_server_busy(task.exception()):
                    return await task
            pending = waiting if done else {*waiting, asyncio.create_task(query())}
    finally:
        for task in pending:
            task.cancel()
