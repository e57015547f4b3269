"""Client: starts runs and sessions, and finds them again.

It knows agents by name, and runs by their wire types. So it needs no agent's code.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, TypedDict, Unpack, overload

import temporalio.client
from temporalio.client import WorkflowExecutionStatus
from temporalio.common import Priority, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError, RPCStatusCode

from perdure.blobs import BlobStore
from perdure.errors import InvalidRequest, RunConflict, RunNotFound, UnknownAgent
from perdure.limits import Limits
from perdure.messages import Part
from perdure.outputs import Output
from perdure.settings import Settings, load_settings
from perdure.task_queues import served_names, unserved_message
from perdure.wire.names import SESSION_WORKFLOW, TASK_QUEUE, WORKFLOW
from perdure.wire.requests import MAX_IDLE, RunRequest, SessionRequest, WhenToUpgrade
from perdure.wire.results import ListedStatus, RunResult

from ...workers.connection import connect_temporal, describe_task_queue, list_workers
from . import visibility
from .bulk import Outcome, act_on_each
from .errors import rpc_error, session_ended_error
from .listing import RunInfo, explain_unbegun, list_runs
from .outages import ride_out
from .outputs import form_of, name_of
from .requests import (
    build_request,
    check_attachments,
    check_id,
    check_workflow_type,
    has_request,
    is_from,
    request_json,
    request_memo,
    validate_request,
)
from .run import Run
from .session import Opening, Session

if TYPE_CHECKING:
    from perdure.agent import Agent
    from perdure.members import Member

_WORKER_POLL_SECONDS: Final = 0.2

_MOST_SIDE_BY_SIDE: Final = 100
"""Runs of one agent among which the newest is looked for."""


class StartSettings(TypedDict, total=False):
    """Settings of `Client.start` beside agent and prompt."""

    id: str | None
    user: str | None
    roles: Sequence[str]
    limits: Limits | None
    context: dict[str, Any] | None
    stream: bool
    rerun: bool
    priority: Priority


class SessionSettings(TypedDict, total=False):
    """Settings of `Client.session` beside id and agent."""

    user: str | None
    roles: Sequence[str]
    context: dict[str, Any] | None
    limits: Limits | None
    session_limits: Limits | None
    max_idle: timedelta | None
    upgrade: WhenToUpgrade
    stream: bool
    reopen: bool
    priority: Priority


class Client:
    """Starts runs and finds them again. Made by `connect`."""

    def __init__(self, temporal: temporalio.client.Client, *, task_queue: str = TASK_QUEUE) -> None:
        self.temporal = temporal
        self.task_queue = task_queue

    @overload
    async def start(
        self, agent: "Agent[Output]", prompt: str | list[Part], **settings: Unpack[StartSettings]
    ) -> Run[Output | None]: ...

    @overload
    async def start(
        self, agent: "str | Member", prompt: str | list[Part], **settings: Unpack[StartSettings]
    ) -> Run[Any]: ...

    async def start(
        self,
        agent: "str | Member",
        prompt: str | list[Part],
        *,
        id: str | None = None,  # noqa: A002 - Temporal's own word
        user: str | None = None,
        roles: Sequence[str] = (),
        limits: Limits | None = None,
        context: dict[str, Any] | None = None,
        stream: bool = True,
        rerun: bool = False,
        priority: Priority = Priority.default,
    ) -> Run:
        """Start a run; it is durable once this returns. A server that is away for a minute is waited for.

        `agent` is a name. With the agent itself, the output of `Run.result` is a value of its `output_type`.

        `priority` is Temporal's: a key from 1 (first) to 5, and a fairness key, such as a tenant's name. A
        busy task queue takes turns between fairness keys. Calls and child runs inherit the priority.

        If a run of that id is running, that run is returned. If it has ended, it is returned too when the
        request is the same, so that a repeated call has no second effect; with `rerun`, a new run starts.

        Raises:
            InvalidRequest: the request is wrong; nothing was started.
            RunConflict: the id belongs to a run that has ended and had another request, or to another
            workflow.

        """
        request = build_request(
            RunRequest,
            agent=name_of(agent),
            prompt=prompt,
            user=user,
            roles=list(roles),
            limits=limits,
            context=context or {},
            stream=stream,
        )
        check_attachments(request.prompt)
        plain = request_json(request)
        if id is not None:
            check_id(id)
        run_id = id or f"{request.agent}-{uuid.uuid4().hex[:12]}"
        run = Run[Any](self.temporal, run_id, form_of(agent))
        # A run that ends between the two calls is neither started nor found: then both are repeated.
        while not (
            await self._try_start(run_id, request, plain, rerun=rerun, priority=priority)
            or await self._is_started(run, plain, rerun=rerun)
        ):
            pass
        return run

    async def _try_start(
        self, run_id: str, request: RunRequest, plain: dict[str, Any], *, rerun: bool, priority: Priority
    ) -> bool:
        """Start the workflow; return False if the id is taken."""
        words = request.prompt if isinstance(request.prompt, str) else f"{len(request.prompt)} parts"
        # Without `rerun` the id alone keeps a repeated start from having a second effect.
        start = uuid.uuid4().hex if rerun else None
        is_repeated = False

        async def start_once() -> None:
            nonlocal is_repeated
            if is_repeated and start is not None and await self._is_started_by(run_id, start):
                return
            is_repeated = True
            await self.temporal.start_workflow(
                WORKFLOW,
                plain,
                id=run_id,
                task_queue=self.task_queue,
                # Of two concurrent starts with one id, the server refuses one, which then finds the run.
                id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
                id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
                if rerun
                else WorkflowIDReusePolicy.REJECT_DUPLICATE,
                memo=request_memo(plain, start),
                static_summary=f"{request.agent}: {' '.join(words.split())[:150]}",
                priority=priority,
            )

        try:
            await ride_out(start_once)
        except WorkflowAlreadyStartedError:
            return False
        except RPCError as error:
            raise rpc_error(error) from error
        return True

    async def _is_started_by(self, run_id: str, start: str) -> bool:
        try:
            return await is_from(await self.temporal.get_workflow_handle(run_id).describe(), start)
        except RPCError as error:
            if error.status == RPCStatusCode.NOT_FOUND:
                return False
            raise

    async def _is_started(self, run: Run, plain: dict[str, Any], *, rerun: bool) -> bool:
        """Return whether the run that has the id is the one to return. If not, it has ended meanwhile."""
        description = await run.describe()
        check_workflow_type(run.id, description, WORKFLOW)
        if rerun or description.status == WorkflowExecutionStatus.RUNNING:
            return description.status == WorkflowExecutionStatus.RUNNING
        if not await has_request(description, plain):
            raise RunConflict(
                f"run {run.id!r} is over and had another request; choose another id, "
                "or start it anew with rerun=True (--rerun)"
            )
        return True

    @overload
    async def run(
        self, agent: "Agent[Output]", prompt: str | list[Part], **settings: Unpack[StartSettings]
    ) -> RunResult[Output | None]: ...

    @overload
    async def run(
        self, agent: "str | Member", prompt: str | list[Part], **settings: Unpack[StartSettings]
    ) -> RunResult[Any]: ...

    async def run(
        self, agent: "str | Member", prompt: str | list[Part], **settings: Unpack[StartSettings]
    ) -> RunResult[Any]:
        """Start a run, as `start` does, and wait for the result."""
        started = await self.start(agent, prompt, **settings)
        return await started.result()

    @overload
    async def session(
        self,
        id: str,
        *,
        agent: "Agent[Output]",
        **settings: Unpack[SessionSettings],
    ) -> Session[Output | None]: ...

    @overload
    async def session(
        self,
        id: str,
        *,
        agent: "str | Member | None" = None,
        **settings: Unpack[SessionSettings],
    ) -> Session[Any]: ...

    async def session(
        self,
        id: str,  # noqa: A002
        *,
        agent: "str | Member | None" = None,
        user: str | None = None,
        roles: Sequence[str] = (),
        context: dict[str, Any] | None = None,
        limits: Limits | None = None,
        session_limits: Limits | None = None,
        max_idle: timedelta | None = MAX_IDLE,
        upgrade: WhenToUpgrade = "never",
        stream: bool = True,
        reopen: bool = False,
        priority: Priority = Priority.default,
    ) -> Session[Any]:
        """Return the session of that id. With an `agent`, its first message starts it if it does not exist.

        `limits` tighten the agent's own in each turn, `session_limits` bound the whole session. It closes
        after `max_idle` without a message (None: never). It keeps the version of the agent that it was opened with,
        until `Session.upgrade`; with `upgrade="each_turn"`, each message brings the newest.

        Raises:
            InvalidRequest: the request is wrong.
            RunConflict: the id belongs to another workflow, or to a session with another request.
            RunEnded: the session has ended; with `reopen`, a new one with that id starts.
            RunNotFound: there is no such session, and no `agent` was given.

        """
        run = Run[Any](self.temporal, id, form_of(agent))
        if agent is None:
            check_workflow_type(id, await run.describe(), SESSION_WORKFLOW)
            return Session(run)
        request = _session_request(
            max_idle,
            agent=name_of(agent),
            user=user,
            roles=list(roles),
            context=context or {},
            limits=limits,
            session_limits=session_limits,
            # The default stays unset: a request is compared as it was given.
            upgrade=upgrade if upgrade != "never" else None,
            stream=stream,
        )
        plain = request_json(request)
        check_id(id)
        # An open session needs no start with its first message, which is the cheaper update.
        if await self._is_open(run, plain, reopen=reopen):
            return Session(run)
        opening = Opening(
            request=plain,
            task_queue=self.task_queue,
            memo=request_memo(plain),
            reopen=reopen,
            priority=priority,
        )
        return Session(run, opening)

    async def _is_open(self, run: Run, plain: dict[str, Any], *, reopen: bool) -> bool:
        """Return whether a session of that id and request is open.

        Raises:
            RunConflict: the id belongs to another workflow, or to a session with another request.
            RunEnded: the session has ended, and is not to be reopened.

        """
        try:
            description = await run.describe()
        except RunNotFound:
            return False
        check_workflow_type(run.id, description, SESSION_WORKFLOW)
        if description.status != WorkflowExecutionStatus.RUNNING:
            if reopen:
                return False
            raise session_ended_error(run.id)
        if not await has_request(description, plain):
            raise RunConflict(
                f"session {run.id!r} goes on with another request (agent, user, limits ...); choose another "
                f"id, or take it as it is: client.session({run.id!r}), without an agent"
            )
        return True

    async def has_worker(self) -> bool:
        """Return whether a worker that takes new runs has polled within the last minute and a half."""
        try:
            queue = await ride_out(lambda: describe_task_queue(self.temporal, self.task_queue))
        except RPCError as error:
            raise rpc_error(error) from error
        # A worker of a version that takes no new runs does not count.
        return any(
            poller.version in queue.routing.targets for poller in queue.active_pollers(datetime.now(UTC))
        )

    async def check_agent(self, agent: str) -> None:
        """Check that a worker of the task queue serves the agent, as far as the workers have told the server.

        A worker tells it some seconds after it has started. Where one has not told, or the server does not list its
        workers, nothing is raised: then a run of the agent says by itself that it waits for a worker.

        Raises:
            UnknownAgent: every worker has told, and none serves it.

        """
        try:
            queue = await describe_task_queue(self.temporal, self.task_queue)
            workers = await list_workers(self.temporal, self.task_queue)
        except RPCError:
            return
        now = datetime.now(UTC)
        names = served_names(queue.active_pollers(now), workers, now)
        if names is not None and agent not in names:
            raise UnknownAgent(unserved_message(agent, self.task_queue, names))

    async def wait_for_worker(self, *, within: timedelta = timedelta(seconds=2)) -> bool:
        """Wait for a worker to poll; return False if none does in time.

        A server that has just started hears of its workers within a second.
        """
        deadline = time.monotonic() + within.total_seconds()
        while not await self.has_worker():
            if time.monotonic() >= deadline:
                return False
            await asyncio.sleep(_WORKER_POLL_SECONDS)
        return True

    @overload
    def get(self, id: str, agent: "Agent[Output]") -> Run[Output | None]: ...

    @overload
    def get(self, id: str, agent: None = None) -> Run[Any]: ...

    def get(self, id: str, agent: "Agent[Any] | None" = None) -> Run[Any]:  # noqa: A002
        """Return a handle on the run of that id; nothing is asked, so the run need not exist.

        With the `agent` of the run, the output of its result is a value of the `output_type`.
        """
        return Run(self.temporal, id, form_of(agent))

    async def newest_run(self, agent: str) -> Run:
        """Return the newest run, of any status, of that agent, swarm or graph.

        Raises:
            RunNotFound: there is none.

        """
        # The server lists the open runs first, then the others by their end: of two that ran side by side,
        # the older one may come first.
        listed = [info async for info in self.list(agent=agent, most=_MOST_SIDE_BY_SIDE)]
        if not listed:
            raise RunNotFound(f"there is no run of {agent!r}")
        return self.get(max(listed, key=lambda info: info.started_at).id)

    async def open_sessions(
        self, *, agent: str | None = None, user: str | None = None, most: int = 100
    ) -> AsyncIterator[RunInfo]:
        """Yield the sessions that are not over, the newest first."""
        query = f'WorkflowType = {visibility.quote(SESSION_WORKFLOW)} AND ExecutionStatus = "Running"'
        async for info in self.list(agent=agent, user=user, query=query, most=most):
            yield info

    async def continue_session(
        self,
        id: str,  # noqa: A002
        *,
        agent: str | None = None,
        reopen: bool = False,
        **request: Any,
    ) -> Session:
        """Return the open session of that id as it is, whatever its request, or else a new one.

        A new one is with the agent, by the request, whose fields are those of `session`. A session that is
        over is opened anew only with `reopen`.

        Raises:
            InvalidRequest: the open session is with another agent, or a new one has none.
            RunEnded: the session is over.
            RunNotFound: there is no such session, and no agent to open one with.

        """
        try:
            session = await self.session(id)
        except RunNotFound:
            if agent is None:
                raise
            return await self.session(id, agent=agent, **request)
        described = await session.run.describe()
        if described.status == WorkflowExecutionStatus.RUNNING:
            status = await session.status()
            if agent not in (None, status.agent):
                raise InvalidRequest(f"session {id!r} is with {status.agent!r}, not with {agent!r}")
            return session
        if not reopen:
            raise session_ended_error(id)
        if agent is None:
            raise InvalidRequest(f"session {id!r} is over; to open it anew, name an agent")
        return await self.session(id, agent=agent, reopen=True, **request)

    async def parked_runs(
        self,
        *,
        cause: str | None = None,
        agent: str | None = None,
        user: str | None = None,
        older_than: timedelta | None = None,
        query: str | None = None,
        task_queue: str | None = None,
        most: int = 1000,
    ) -> AsyncIterator[RunInfo]:
        """Yield the parked runs, at any depth, the newest first; `redrive` lets them go on.

        `cause` is the kind of error, or an unambiguous beginning of it. `older_than` leaves out runs that
        were parked since. `task_queue` leaves out the runs of every other task queue.

        Raises:
            InvalidRequest: there is no such cause.

        """
        condition = visibility.join(
            visibility.is_parked(cause=cause, older_than=older_than),
            f"({query})" if query else None,
        )
        async for info in self.list(
            status="parked",
            agent=agent,
            user=user,
            query=condition,
            task_queue=task_queue,
            most=most,
            roots=False,
        ):
            yield info

    # Scripts written before `parked_runs` had its name call it so.
    parked = parked_runs
    """Earlier name of `parked_runs`."""

    def act_on(self, ids: Sequence[str], action: Callable[[Run], Awaitable[None]]) -> AsyncGenerator[Outcome]:
        """Apply the action to each run, some at a time; yield an outcome for each, in the order of the ids.

        A run that refuses keeps none of the rest from being acted on.
        """
        return act_on_each(ids, lambda run_id: action(self.get(run_id)))

    def redrive(
        self,
        ids: Sequence[str],
        *,
        model: str | None = None,
        newest: bool = False,
        limits: Limits | None = None,
    ) -> AsyncGenerator[Outcome]:
        """Let parked runs go on, each as by `Run.redrive`; yield an outcome for each."""
        return self.act_on(ids, lambda run: run.redrive(model=model, newest=newest, limits=limits))

    async def waiting(
        self,
        *,
        status: ListedStatus | None = None,
        agent: str | None = None,
        user: str | None = None,
        query: str | None = None,
        task_queue: str | None = None,
        most: int = 100,
        roots: bool = True,
    ) -> AsyncIterator[RunInfo]:
        """Yield the open runs that wait for a person; `Run.waiting` tells for what.

        They wait for an approval, for an answer, or parked for help.
        """
        condition = visibility.join(visibility.WAITING, f"({query})" if query else None)
        async for info in self.list(
            status=status,
            agent=agent,
            user=user,
            query=condition,
            task_queue=task_queue,
            most=most,
            roots=roots,
        ):
            yield info

    async def list(
        self,
        *,
        status: ListedStatus | None = None,
        agent: str | None = None,
        user: str | None = None,
        query: str | None = None,
        task_queue: str | None = None,
        most: int = 100,
        roots: bool = True,
    ) -> AsyncIterator[RunInfo]:
        """Yield runs and sessions, the newest first, of every task queue or of one.

        `query` is a condition of a Temporal visibility query.

        With `roots`, runs started by another run are left out: a swarm's agents, a graph's nodes, agents
        called as tools. A run that a workflow of your own started is a root.

        Raises:
            InvalidRequest: the query is wrong, or runs are not listed by that status.

        """
        condition = visibility.runs(status=status, agent=agent, user=user, query=query, task_queue=task_queue)
        async for info in list_runs(self.temporal, condition, most=most, roots=roots):
            yield info

    async def explain_unbegun(self, infos: Sequence[RunInfo]) -> Sequence[RunInfo]:
        """Return the listed runs; those that have not begun say why, as far as the server knows: `cannot_begin`."""
        return await explain_unbegun(self.temporal, infos)


def _session_request(max_idle: timedelta | None, **fields: Any) -> SessionRequest:
    request = build_request(SessionRequest, **fields)
    if max_idle == MAX_IDLE:
        return request
    # None is a value here, and means never; `build_request` takes it for an empty field.
    return validate_request(SessionRequest, {**request.to_json(), "max_idle": max_idle})


async def connect(
    address: str | None = None,
    *,
    namespace: str | None = None,
    task_queue: str | None = None,
    api_key: str | None = None,
    tls: bool | None = None,
    settings: Settings | None = None,
    blobs: BlobStore | None = None,
) -> Client:
    """Connect to Temporal. The settings (PERDURE_..., `.env`) say what the arguments do not.

    `blobs` is the blob store, if it is not the one of the settings: the one that the workers have.

    Raises:
        NotReachable: nothing answers at the address.
        DefinitionError: the settings are wrong.

    """
    arguments = {
        "address": address,
        "namespace": namespace,
        "task_queue": task_queue,
        "api_key": api_key,
        "tls": tls,
    }
    overrides = {name: value for name, value in arguments.items() if value is not None}
    if settings is None:
        settings = load_settings(**overrides)
    elif overrides:
        settings = settings.model_copy(update=overrides)
    return Client(await connect_temporal(settings, blobs=blobs), task_queue=settings.task_queue)
