"""Worker process: serves the agents of files with a Temporal worker until a signal stops it.

0. A server that is away is waited for, with a line that says so. A signal ends the wait at once.
1. The process prints `Ready` only once the server lists it as a poller: runs started then find a worker.
2. On the first signal it polls no more, and its pending activities may finish within the grace.
3. After the grace they are cancelled and fail. The server retries them on another worker a second later.
4. An activity that cannot be cancelled is abandoned. The server retries it once its heartbeats stop.
"""

import asyncio
import contextlib
import ctypes
import json
import logging
import os
import signal
import sys
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import Runtime
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig

from perdure.agent import Agent
from perdure.errors import DefinitionError, ModelError, NotReachable
from perdure.members import Member
from perdure.model import Model
from perdure.settings import Settings
from perdure.task_queues import served_differently
from perdure.versions import new_runs_problem, version_of

from .connection import connect_to_namespace, describe_task_queue, is_refused, list_workers
from .load import Definitions, load_files
from .observe import health
from .observe.parked import report_parked_runs
from .observe.telemetry import report_telemetry
from .plugin import PerdurePlugin, members_by_name

_log = logging.getLogger("perdure.worker")
_FIRST_WAIT, _LONGEST_WAIT = 0.5, 5.0
"""Seconds between two attempts to connect."""
_SAY_AGAIN: Final = 30.0
"""Seconds after which a worker that waits for its server says so again."""
_LOOKS: Final = (0.0, 15.0, 60.0)
"""Seconds before each look at what the other workers of the queue serve: those that start beside tell it late."""
_REPORT_TIME: Final = timedelta(seconds=4)
"""Time after the grace to report cancelled activities to the server."""
_BUILD_NEEDED: Final = (
    "a worker deployment needs a build id too: --build, PERDURE_BUILD_ID; use a release or a digest, never a "
    "random value"
)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """Description of a worker that has begun to poll."""

    agents: tuple[str, ...]
    address: str
    task_queue: str
    warnings: tuple[str, ...] = ()
    health: str | None = None
    version: str | None = None
    """`deployment:build`; None for a worker without a version."""

    def line(self) -> str:
        """Return the description as a line for people."""
        served = ", ".join(self.agents)
        health = f"; health on http://{self.health}" if self.health else ""
        version = f", version {self.version}" if self.version else ""
        return f"ready: {served} on task queue {self.task_queue!r} of {self.address}{version}{health}"


@dataclass(frozen=True, kw_only=True)
class WorkerArgs:
    """Arguments of a worker process."""

    files: Sequence[str]
    settings: Settings
    ready_fd: int | None = None
    """File descriptor that gets `Ready` as a line of JSON, for a parent process that waits for it."""

    def notify(self, line: str) -> None:
        """Print a line for people. Under `perdure dev` nothing is printed: it prints its own lines."""
        if self.ready_fd is None:
            print_stderr(line)


async def run_worker(args: WorkerArgs) -> None:
    """Serve the agents of the files until SIGTERM or SIGINT; a second signal ends the process at once.

    Raises:
        DefinitionError: the files, the settings or a model's settings are wrong.
        NotReachable: the server answers, and does not let this worker in.

    """
    definitions = load_files(args.files)
    settings = args.settings
    with report_telemetry(settings) as runtime:
        if args.ready_fd is not None:  # under `perdure dev` each save would log a shutdown
            logging.getLogger("temporalio.worker._worker").setLevel(logging.WARNING)
        # The connection uses the process's default runtime, and there is one connection.
        Runtime.set_default(runtime, error_if_already_set=False)
        plugin = PerdurePlugin(
            definitions.agents,
            models=definitions.models,
            settings=settings,
            resources=definitions.resources,
            credentials=definitions.credentials,
        )
        # In a thread: checks may read credentials from files or the network.
        warnings = await asyncio.to_thread(check_models, list(plugin.agents.values()), plugin.models)
        for warning in warnings:
            args.notify(f"warning: {warning}")
        stop = asyncio.Event()
        with _stop_on_signals(stop, args.notify):
            temporal = await _wait_for_server(args, plugin, stop)
            if temporal is not None:
                await _serve(args, definitions, temporal, stop, warnings=tuple(warnings), plugin=plugin)


async def _wait_for_server(args: WorkerArgs, plugin: PerdurePlugin, stop: asyncio.Event) -> Client | None:
    """Return a connection once a server serves the namespace, or None if a signal comes first.

    Raises:
        NotReachable: the server answers, and does not let this worker in.

    """

    async def is_away() -> str:
        return "no Temporal server has answered yet"

    async with contextlib.AsyncExitStack() as stack:
        if args.settings.health_address is not None:  # a probe must see a worker that is alive, and not ready
            serving = health.serve(args.settings.health_address, is_away, plugin.traffic.circuits.states)
            await stack.enter_async_context(serving)
        connecting = asyncio.create_task(_connect_patiently(args, plugin))
        stopping = asyncio.create_task(stop.wait())
        try:
            await asyncio.wait({connecting, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return await connecting if connecting.done() else None
        finally:
            connecting.cancel()
            stopping.cancel()


async def _connect_patiently(args: WorkerArgs, plugin: PerdurePlugin) -> Client:
    pause, said_at = _FIRST_WAIT, float("-inf")
    while True:
        try:
            return await connect_to_namespace(args.settings, [plugin])
        except NotReachable as error:
            if is_refused(error):
                raise
            now = asyncio.get_running_loop().time()
            if now - said_at >= _SAY_AGAIN:
                said_at = now
                args.notify(f"waiting for the server: {error}")
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_WAIT)


async def _serve(
    args: WorkerArgs,
    definitions: Definitions,
    temporal: Client,
    stop: asyncio.Event,
    *,
    warnings: tuple[str, ...],
    plugin: PerdurePlugin,
) -> None:
    worker = Worker(temporal, task_queue=args.settings.task_queue, **worker_options(args.settings))
    running = asyncio.create_task(worker.run())
    stopping = asyncio.create_task(stop.wait())
    looking: asyncio.Task[None] | None = None
    try:
        # Parked runs are found by search attribute and reported as a metric: both are needed.
        counts_parked = args.settings.metrics != "off" and args.settings.search_attributes
        # Health is served before the first poll: a probe must see a worker that cannot reach the server.
        async with (
            serve_health(plugin, worker, temporal, stop) as health_address,
            report_parked_runs(temporal, enabled=counts_parked),
        ):
            if await _wait_for_first_poll(temporal, args, worker, running, stopping):
                looking = asyncio.create_task(_warn_if_agents_differ(args, plugin, temporal))
                ready = Ready(
                    agents=served_names(definitions.agents),
                    address=args.settings.address,
                    task_queue=args.settings.task_queue,
                    warnings=warnings,
                    health=health_address,
                    version=version_of(args.settings),
                )
                _announce(args, ready)
                await _warn_if_no_new_runs(args, temporal)
            await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
            await _shut_down(worker, running, args)
    finally:
        stopping.cancel()
        if looking is not None:
            looking.cancel()
        await _shut_down(worker, running, args)
    await running  # raises the error of a worker that ended by itself


async def _warn_if_no_new_runs(args: WorkerArgs, temporal: Client) -> None:
    """Print what to do if the server routes no new runs to this worker's version.

    A version gets no runs until a person promotes or ramps it, which is easily forgotten for the first.
    """
    version = version_of(args.settings)
    if version is None:
        return
    with contextlib.suppress(RPCError):
        task_queue = await describe_task_queue(temporal, args.settings.task_queue)
        problem = new_runs_problem(task_queue.routing, version)
        if problem is not None:
            args.notify(problem)


async def _warn_if_agents_differ(args: WorkerArgs, plugin: PerdurePlugin, temporal: Client) -> None:
    """Log how what this worker serves differs from what others of its queue do, once they have told the server."""
    logged: str | None = None
    for pause in _LOOKS:
        await asyncio.sleep(pause)
        with contextlib.suppress(RPCError):  # an older server does not know its workers
            workers = await list_workers(temporal, args.settings.task_queue)
            others = [worker for worker in workers if worker.identity != temporal.identity]
            words = served_differently(others, datetime.now(UTC), own=plugin.members)
            if words is not None and words != logged:
                _log.warning("%s", words)
            logged = words


async def _shut_down(worker: Worker, running: "asyncio.Task[None]", args: WorkerArgs) -> None:
    """Stop polling, and wait for pending activities to end; see the rules at the top of this file."""
    if running.done():
        return
    timeout = args.settings.graceful_shutdown_timeout + _REPORT_TIME
    try:
        await asyncio.wait_for(worker.shutdown(), timeout.total_seconds())
    except TimeoutError:
        args.notify("exiting with calls that neither end nor can be cancelled: Temporal retries them")
        exit_now(1)


def served_names(members: Sequence[Member]) -> tuple[str, ...]:
    """Return the names that can be started; first those that no other member runs: people start these."""
    served = members_by_name(members)
    children = {name for member in served.values() for name in member.members}
    return tuple(sorted(served, key=lambda name: name in children))


def worker_options(settings: Settings) -> dict[str, Any]:
    """Return the arguments of Temporal's Worker for the settings; the plugin adds those that agents need.

    Raises:
        DefinitionError: the settings name a deployment without a build id.

    """
    options: dict[str, Any] = {
        "max_concurrent_activities": settings.max_concurrent_activities,
        "max_concurrent_workflow_tasks": settings.max_concurrent_workflow_tasks,
        "max_cached_workflows": settings.max_cached_workflows,
        "graceful_shutdown_timeout": settings.graceful_shutdown_timeout,
    }
    if settings.deployment_name is not None:
        if settings.build_id is None:
            raise DefinitionError(_BUILD_NEEDED)
        options["deployment_config"] = WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(settings.deployment_name, settings.build_id),
            use_worker_versioning=True,
            # A run keeps the workflow code that it began with, as it keeps its agent's spec. So a parked run
            # keeps its version from being drained.
            default_versioning_behavior=VersioningBehavior.PINNED,
        )
    return options


def check_models(agents: Sequence[Agent], models: Mapping[str, Model]) -> list[str]:
    """Check each agent's models with their providers; return warnings, such as a missing key.

    Raises:
        DefinitionError: a provider does not exist, or does not know an option.

    """
    warnings: list[str] = []
    for agent in agents:
        for config in agent.all_models:
            model = models.get(config.provider)
            if model is None:
                known = ", ".join(sorted(models))
                raise DefinitionError(
                    f"agent {agent.name!r}: no provider {config.provider!r} for model {config.name!r}; "
                    f"there are: {known}"
                )
            try:
                model.check(config)
            except DefinitionError as error:
                raise DefinitionError(f"agent {agent.name!r}: {error}") from error
            except ModelError as error:
                # Not fatal: fallbacks of this agent, and other agents, may work.
                warnings.append(f"agent {agent.name!r}, model {config.name}: {error}")
    return warnings


# -- signals, readiness, health


@contextlib.contextmanager
def _stop_on_signals(stop: asyncio.Event, notify: Callable[[str], None]) -> Generator[None, None, None]:
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            notify("exiting at once")
            exit_now(128 + number)
        notify("stopping: pending calls may finish; a second signal exits at once")
        stop.set()

    signals = (signal.SIGTERM, signal.SIGINT)
    for number in signals:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)


async def _wait_for_first_poll(
    temporal: Client,
    args: WorkerArgs,
    worker: Worker,
    running: "asyncio.Task[None]",
    stopping: "asyncio.Task[Any]",
) -> bool:
    """Return True once the server lists the worker as a poller, or False if the worker ends before."""
    active: Any = worker.config(active_config=True)
    identity = str(active["identity"] or temporal.identity)
    # The SDK does not report its first poll, so the server is asked until it lists this worker.
    loop = asyncio.get_running_loop()
    said_at = loop.time()
    while not running.done() and not stopping.done():
        asking = asyncio.ensure_future(describe_task_queue(temporal, args.settings.task_queue))
        # The SDK asks a server that has gone away for ten seconds; a signal must not wait as long.
        await asyncio.wait({asking, running, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if not asking.done():
            asking.cancel()
            break
        described = None if isinstance(asking.exception(), RPCError) else asking.result()
        if described is not None and any(poller.identity == identity for poller in described.pollers):
            return True
        if loop.time() - said_at >= _SAY_AGAIN:
            said_at = loop.time()
            args.notify("waiting for the server: it does not list this worker yet")
        await asyncio.sleep(0.02)
    return False


@contextlib.asynccontextmanager
async def serve_health(
    plugin: PerdurePlugin, worker: Worker, temporal: Client, stop: asyncio.Event
) -> AsyncGenerator[str | None, None]:
    """Serve the worker's health while the block runs; yield the address, or None where the settings name none."""
    address = plugin.settings.health_address
    if address is None:
        yield None
        return

    async def ready() -> str | None:
        if stop.is_set():
            return "the worker is stopping"
        if not worker.is_running or worker.is_shutdown:
            return "the worker does not take work"
        return plugin.threads.problem() or await _server_problem(temporal)

    circuits, threads = plugin.traffic.circuits.states, plugin.threads.states
    async with health.serve(address, ready, circuits, threads) as served_at:
        yield served_at


async def _server_problem(temporal: Client) -> str | None:
    try:
        is_serving = await temporal.service_client.check_health(timeout=timedelta(seconds=2))
    except (RPCError, RuntimeError):
        is_serving = False
    return None if is_serving else "the Temporal server does not answer"


def _announce(args: WorkerArgs, ready: Ready) -> None:
    if args.ready_fd is None:
        args.notify(ready.line())
        return
    # The parent may have died meanwhile; then this worker gets a signal, see `stop_with_parent`.
    with contextlib.suppress(OSError), os.fdopen(args.ready_fd, "w") as pipe:
        pipe.write(json.dumps(ready.__dict__) + "\n")


def stop_with_parent(parent: int) -> None:
    """Have Linux send SIGTERM to this process when its parent dies; on other systems, do nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        # The parent may have died before the call above; then no signal comes.
        if os.getppid() != parent:
            exit_now(0)


def exit_now(code: int) -> None:
    """End the process at once, with its output flushed.

    Python's normal exit crashes in 5 to 15 of 100 short processes that used Temporal's SDK
    (sdk-python issue 300).
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run_process(body: Callable[[], Awaitable[None]]) -> None:
    """Run the body and end the process: with 0, 2 for a mistake of the caller, or 5 for no server."""
    try:
        asyncio.run(_run(body))
        code = 0
    except NotReachable as error:
        code = _print_error(error, 5)
    except DefinitionError as error:
        code = _print_error(error, 2)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    exit_now(code)


def print_stderr(line: str) -> None:
    """Print a line on stderr at once, for people; results go to stdout."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


async def _run(body: Callable[[], Awaitable[None]]) -> None:
    await body()


def _print_error(error: Exception, code: int) -> int:
    print_stderr(f"error: {error}")
    return code
