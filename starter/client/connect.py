"""Client: the way in. Knows runs by name and wire type only, so it needs no agent's code."""

import json
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeVar

import temporalio.client
from pydantic import BaseModel, ValidationError
from temporalio.client import WorkflowExecution, WorkflowExecutionDescription, WorkflowExecutionStatus
from temporalio.common import Priority, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import WorkflowAlreadyStartedError
from temporalio.service import RPCError

from perdure.blobs import BlobStore
from perdure.errors import InvalidRequest, RunConflict, RunNotFound
from perdure.limits import Limits, explain
from perdure.messages import Part, Value
from perdure.model import digest
from perdure.settings import Settings, load_settings
from perdure.wire.attributes import (
    AGENT_COST_USD,
    AGENT_NAME,
    AGENT_PARKED_AT,
    AGENT_PARKED_FOR,
    AGENT_STATUS,
    AGENT_STEPS,
    AGENT_STOP_REASON,
    AGENT_USER,
)
from perdure.wire.ids import is_child_of
from perdure.wire.names import SESSION_WORKFLOW, TASK_QUEUE, WORKFLOW, WORKFLOWS
from perdure.wire.requests import MAX_IDLE, RunRequest, SessionRequest
from perdure.wire.results import ENDED, ListedStatus, RunResult

from ...workers.connection import connect_temporal, describe_task_queue
from .bulk import Outcome, act_on_each
from .causes import match_cause
from .errors import rpc_error, session_ended_error
from .run import Run
from .session import Opening, Session
from .visibility import quote

_REQUEST_DIGEST = "perdure_request"
# A terminated run keeps the status that it had set last, so the server's own state counts too.
_WAITING = (
    f'{AGENT_STATUS.name} IN ("waiting_approval", "waiting_person", "parked") AND ExecutionStatus = "Running"'
)


_Asked = TypeVar("_Asked", bound=BaseModel)


class RunInfo(Value):
    """A run in a list: what its search attributes tell, without asking a worker."""

    id: str
    kind: Literal["run", "session"] = "run"
    agent: str | None = None
    status: ListedStatus | str = ""
    stop_reason: str | None = None
    user: str | None = None
    steps: int = 0
    cost_usd: float | None = None
    started_at: datetime
    ended_at: datetime | None = None
    parked_for: str | None = None
    """Why it is parked: a kind of error, see `docs/errors.md`."""
    parked_at: datetime | None = None


class Client:
    """Starts runs and finds them again. Made by `connect`."""

    def __init__(self, temporal: temporalio.client.Client, *, task_queue: str = TASK_QUEUE) -> None:
        self.temporal = temporal
        self.task_queue = task_queue

    async def start(
        self,
        agent: str,
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
        """Start a run; it is durable once this returns.

        `priority` is Temporal's: a key from 1 (first) to 5, and a fairness key, such as a tenant's name,
        between which a busy task queue takes turns. Calls and child runs inherit it, by Temporal's own rules.

        An id that is running already gives that run. An id whose run is over gives that run too if
        the request is the same, so that a repeated call does nothing twice; with `rerun` it starts
        anew.

        Raises:
            InvalidRequest: the request is wrong; nothing was started.
            RunConflict: the id belongs to a finished run with another request.

        """
        request = _request(
            RunRequest,
            agent=agent,
            prompt=prompt,
            user=user,
            roles=list(roles),
            limits=limits,
            context=context or {},
            stream=stream,
        )
        plain = _writable(request, id)
        run_id = id or f"{request.agent}-{uuid.uuid4().hex[:12]}"
        run = Run(self.temporal, run_id)
        there = False
        while not there:
            try:
                await self._start(run_id, request, plain, rerun=rerun, priority=priority)
                there = True
            except WorkflowAlreadyStartedError:
                there = await self._is_there(run, plain, rerun=rerun)
            except RPCError as error:
                raise rpc_error(error) from error
        return run

    async def _start(
        self, run_id: str, request: RunRequest, plain: dict[str, Any], *, rerun: bool, priority: Priority
    ) -> None:
        words = request.prompt if isinstance(request.prompt, str) else f"{len(request.prompt)} parts"
        await self.temporal.start_workflow(
            WORKFLOW,
            plain,
            id=run_id,
            task_queue=self.task_queue,
            id_conflict_policy=WorkflowIDConflictPolicy.FAIL,
            id_reuse_policy=WorkflowIDReusePolicy.ALLOW_DUPLICATE
            if rerun
            else WorkflowIDReusePolicy.REJECT_DUPLICATE,
            memo={_REQUEST_DIGEST: digest(plain)},
            static_summary=f"{request.agent}: {' '.join(words.split())[:150]}",
            priority=priority,
        )

    async def _is_there(self, run: Run, plain: dict[str, Any], *, rerun: bool) -> bool:
        """Whether what has the id will do. It has ended meanwhile if it will not: it can be started anew."""
        described = await run.describe()
        _check_ours(run, described, WORKFLOW)
        if rerun or described.status == WorkflowExecutionStatus.RUNNING:
            return described.status == WorkflowExecutionStatus.RUNNING
        if (await described.memo()).get(_REQUEST_DIGEST) != digest(plain):
            raise RunConflict(
                f"run {run.id!r} is over and had another request; choose another id, "
                "or start it anew with rerun=True (--rerun)"
            )
        return True

    async def run(self, agent: str, prompt: str | list[Part], **settings: Any) -> RunResult:
        """`start`, and wait for the result."""
        started = await self.start(agent, prompt, **settings)
        return await started.result()

    async def session(
        self,
        id: str,  # noqa: A002
        *,
        agent: str | None = None,
        user: str | None = None,
        roles: Sequence[str] = (),
        context: dict[str, Any] | None = None,
        limits: Limits | None = None,
        session_limits: Limits | None = None,
        max_idle: timedelta | None = MAX_IDLE,
        stream: bool = True,
        reopen: bool = False,
        priority: Priority = Priority.default,
    ) -> Session:
        """The session of that id. With an `agent` it is started by its first message, if need be.

        `limits` tighten the agent's own in each turn, `session_limits` bound the whole. It closes when
        nothing was said for `max_idle` (None: never).

        Raises:
            InvalidRequest: the request is wrong.
            RunConflict: the id belongs to something else, or to a session with another request.
            RunEnded: the session is over; with `reopen` it begins anew, with nothing said.
            RunNotFound: without an agent: there is no such session.

        """
        run = Run(self.temporal, id)
        if agent is None:
            _check_ours(run, await run.describe(), SESSION_WORKFLOW)
            return Session(run)
        request = _request(
            SessionRequest,
            agent=agent,
            user=user,
            roles=list(roles),
            context=context or {},
            limits=limits,
            session_limits=session_limits,
            stream=stream,
        )
        if max_idle != MAX_IDLE:
            request = _valid(SessionRequest, {**request.to_json(), "max_idle": max_idle})
        plain = _writable(request, id)
        if await self._goes_on(run, plain, reopen=reopen):
            return Session(run)
        memo = {_REQUEST_DIGEST: digest(plain)}
        return Session(
            run,
            Opening(request=plain, task_queue=self.task_queue, memo=memo, reopen=reopen, priority=priority),
        )

    async def _goes_on(self, run: Run, plain: dict[str, Any], *, reopen: bool) -> bool:
        """Whether a session of that id and request is open."""
        try:
            described = await run.describe()
        except RunNotFound:
            return False
        _check_ours(run, described, SESSION_WORKFLOW)
        if described.status != WorkflowExecutionStatus.RUNNING:
            if reopen:
                return False
            raise session_ended_error(run.id)
        if (await described.memo()).get(_REQUEST_DIGEST) != digest(plain):
            raise RunConflict(
                f"session {run.id!r} goes on with another request (agent, user, limits ...); choose another "
                f"id, or take it as it is: client.session({run.id!r}), without an agent"
            )
        return True

    async def has_worker(self) -> bool:
        """Whether a worker to which new runs go has asked for work within the last minute and a half."""
        try:
            queue = await describe_task_queue(self.temporal, self.task_queue)
        except RPCError as error:
            raise rpc_error(error) from error
        # A worker of a version that takes no new runs does not count.
        return any(
            poller.version in queue.routing.taken for poller in queue.active_pollers(datetime.now(UTC))
        )

    def get(self, id: str) -> Run:  # noqa: A002
        """The run of that id, whether or not there is one."""
        return Run(self.temporal, id)

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
        wanted = [f"{AGENT_PARKED_FOR.name} IS NOT NULL"]
        if cause is not None:
            wanted = [f"{AGENT_PARKED_FOR.name} = {quote(match_cause(cause))}"]
        if older_than is not None:
            before = datetime.now(UTC) - older_than
            wanted.append(f"{AGENT_PARKED_AT.name} < {quote(before.isoformat())}")
        if task_queue is not None:
            wanted.append(f"TaskQueue = {quote(task_queue)}")
        if query is not None:
            wanted.append(f"({query})")
        found = self.list(
            status="parked", agent=agent, user=user, query=" AND ".join(wanted), most=most, roots=False
        )
        async for info in found:
            yield info

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
        most: int = 100,
        roots: bool = True,
    ) -> AsyncIterator[RunInfo]:
        """Yield the open runs that wait for a person; `Run.waiting` tells for what.

        They wait for an approval, for an answer, or parked for help.
        """
        wanted = " AND ".join([_WAITING, *([f"({query})"] if query else [])])
        async for info in self.list(
            status=status, agent=agent, user=user, query=wanted, most=most, roots=roots
        ):
            yield info

    async def list(
        self,
        *,
        status: ListedStatus | None = None,
        agent: str | None = None,
        user: str | None = None,
        query: str | None = None,
        most: int = 100,
        roots: bool = True,
    ) -> AsyncIterator[RunInfo]:
        """Runs and sessions, the newest first. `query` is a Temporal visibility query, joined with "and".

        With `roots`, without those that another run started: a swarm's agents, a graph's nodes,
        agents called as tools. What a workflow of your own started is a root.
        """
        wanted = [f"WorkflowType IN ({', '.join(quote(kind) for kind in WORKFLOWS)})"]
        if status is not None:
            wanted.append(f"{AGENT_STATUS.name} IN ({', '.join(quote(one) for one in _recorded(status))})")
        for name, value in ((AGENT_NAME.name, agent), (AGENT_USER.name, user)):
            if value is not None:
                wanted.append(f"{name} = {quote(value)}")
        if status is not None and status not in ENDED:
            # What was terminated keeps the status that it had set last.
            wanted.append('ExecutionStatus = "Running"')
        if query:
            wanted.append(f"({query})")
        # A run that continued as new is listed by its newest part only.
        wanted.append('ExecutionStatus != "ContinuedAsNew"')
        try:
            page = min(1000, max(100, most))
            async for execution in self.temporal.list_workflows(" AND ".join(wanted), page_size=page):
                if roots and _is_below(execution):
                    continue
                yield _info(execution)
                most -= 1
                if most <= 0:
                    return
        except RPCError as error:
            raise rpc_error(error) from error


def _request(kind: type[_Asked], **fields: Any) -> _Asked:
    given = {name: value for name, value in fields.items() if value not in (None, [], {})}
    if given.get("stream") is True:
        del given["stream"]
    return _valid(kind, given)


def _valid(kind: type[_Asked], given: dict[str, Any]) -> _Asked:
    try:
        return kind.model_validate(given)
    except ValidationError as error:
        what = "session" if kind is SessionRequest else "run"
        raise InvalidRequest(f"{what} request: {explain(error)}") from None


def _check_ours(run: Run, described: WorkflowExecutionDescription, wanted: str) -> None:
    """An id that somebody chose may be that of any workflow."""
    if described.workflow_type != wanted:
        raise RunConflict(
            f"id {run.id!r} belongs to a workflow of type {described.workflow_type!r}; choose another id"
        )


def _writable(request: RunRequest | SessionRequest, run_id: str | None) -> dict[str, Any]:
    """The request as JSON that can be sent: text may hold half characters, which no server takes."""
    try:
        plain = request.to_json()
        json.dumps([plain, run_id], ensure_ascii=False).encode()
    except ValueError as error:
        raise InvalidRequest(f"run request: it cannot be written as JSON: {error}") from None
    return plain


def _recorded(status: str) -> Sequence[str]:
    """The values of AgentStatus that mean this; runs of version 0.1.0 tell more."""
    if status in ("thinking", "acting"):
        raise InvalidRequest(
            f"runs are not listed by {status!r}: list 'working', and ask each for its status"
        )
    return ("working", "thinking", "acting") if status == "working" else (status,)


def _is_below(execution: WorkflowExecution) -> bool:
    """Whether another run started it: visibility does not tell what type a parent is, our ids do."""
    parent = execution.parent_id
    return parent is not None and is_child_of(parent, execution.id)


def _info(execution: WorkflowExecution) -> RunInfo:
    known = execution.typed_search_attributes
    status = known.get(AGENT_STATUS) or (execution.status.name.lower() if execution.status else "")
    status = "working" if status in ("thinking", "acting") else status
    if execution.status and execution.status.name in ("TERMINATED", "TIMED_OUT", "FAILED", "CANCELED"):
        ended = {"FAILED": "failed", "CANCELED": "cancelled"}
        status = ended.get(execution.status.name, execution.status.name.lower())
    return RunInfo(
        id=execution.id,
        kind="session" if execution.workflow_type == SESSION_WORKFLOW else "run",
        agent=known.get(AGENT_NAME),
        status=status,
        stop_reason=known.get(AGENT_STOP_REASON),
        user=known.get(AGENT_USER),
        steps=known.get(AGENT_STEPS) or 0,
        cost_usd=known.get(AGENT_COST_USD),
        started_at=execution.start_time,
        ended_at=execution.close_time,
        parked_for=known.get(AGENT_PARKED_FOR),
        parked_at=known.get(AGENT_PARKED_AT),
    )


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
    """Connect to Temporal. What is not given is taken from the settings (PERDURE_..., `.env`).

    `blobs` is the blob store, if it is not the one of the settings: the one that the workers have.

    Raises:
        NotReachable: nothing answers at the address.
        DefinitionError: the settings are wrong.

    """
    given = {
        "address": address,
        "namespace": namespace,
        "task_queue": task_queue,
        "api_key": api_key,
        "tls": tls,
    }
    overrides = {name: value for name, value in given.items() if value is not None}
    if settings is None:
        settings = load_settings(**overrides)
    elif overrides:
        settings = settings.model_copy(update=overrides)
    return Client(await connect_temporal(settings, blobs=blobs), task_queue=settings.task_queue)
