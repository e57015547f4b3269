"""The worker process: agents in, a Temporal worker that serves them until it is told to stop."""

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
from datetime import timedelta
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
from perdure.versions import new_runs_problem, version_of

from ..activities.traffic.circuit import Circuits
from .connection import connect_temporal, describe_task_queue
from .load import Definitions, load_files
from .observe import health
from .observe.parked import report_parked_runs
from .observe.telemetry import report_telemetry
from .plugin import PerdurePlugin, members_by_name

_POLLING_WITHIN: Final = 15.0
_LAST_WORDS: Final = timedelta(seconds=4)
"""For handing over, after the grace, what is still in flight; what has not ended by then never will."""
_BUILD_NEEDED: Final = (
    "a worker deployment needs a build id too: --build, PERDURE_BUILD_ID; take a release or a digest, never "
    "something random"
)


@dataclass(frozen=True, kw_only=True)
class Ready:
    """What a worker says of itself once it takes work."""

    agents: tuple[str, ...]
    address: str
    task_queue: str
    warnings: tuple[str, ...] = ()
    health: str | None = None
    version: str | None = None
    """As `deployment:build`; None: without one."""

    def line(self) -> str:
        """One line for people."""
        served = ", ".join(self.agents)
        health = f"; health on http://{self.health}" if self.health else ""
        version = f", version {self.version}" if self.version else ""
        return f"ready: {served} on task queue {self.task_queue!r} of {self.address}{version}{health}"


@dataclass(frozen=True, kw_only=True)
class WorkerArgs:
    """What a worker process is asked to do."""

    files: Sequence[str]
    settings: Settings
    ready_fd: int | None = None
    """Where `Ready` is written as one line of JSON, for a process that waits for it."""

    def notify(self, line: str) -> None:
        """Say something to people; under `perdure dev`, that tells them itself."""
        if self.ready_fd is None:
            print_stderr(line)


async def run_worker(args: WorkerArgs) -> None:
    """Serve the agents of the files until SIGTERM or SIGINT; a second signal leaves at once.

    Raises:
        DefinitionError: the files, the settings or a model's settings are wrong.
        NotReachable: no server answers.

    """
    loaded = load_files(args.files)
    settings = args.settings
    with report_telemetry(settings) as runtime:
        if args.ready_fd is not None:  # under `perdure dev` each save would tell of a shutdown
            logging.getLogger("temporalio.worker._worker").setLevel(logging.WARNING)
        # The connection takes the process's default: there is one of each.
        Runtime.set_default(runtime, error_if_already_set=False)
        plugin = PerdurePlugin(loaded.agents, models=loaded.models, settings=settings)
        warnings = await asyncio.to_thread(check_models, list(plugin.agents.values()), plugin.models)
        for warning in warnings:
            args.notify(f"warning: {warning}")
        temporal = await connect_temporal(settings, [plugin])
        await _serve(args, loaded, temporal, tuple(warnings), plugin.traffic.circuits)


async def _serve(
    args: WorkerArgs, loaded: Definitions, temporal: Client, warnings: tuple[str, ...], circuits: Circuits
) -> None:
    stop = asyncio.Event()
    with _signals(stop, args.notify):
        worker = Worker(temporal, task_queue=args.settings.task_queue, **worker_options(args.settings))
        running = asyncio.create_task(worker.run())
        stopping = asyncio.create_task(stop.wait())
        try:
            counts = args.settings.metrics != "off" and args.settings.search_attributes
            async with (
                _health(args.settings, worker, temporal, stop, circuits) as health_address,
                report_parked_runs(temporal, wanted=counts),
            ):
                if await _polls(temporal, args.settings.task_queue, worker, running, stopping):
                    ready = Ready(
                        agents=served_names(loaded.agents),
                        address=args.settings.address,
                        task_queue=args.settings.task_queue,
                        warnings=warnings,
                        health=health_address,
                        version=version_of(args.settings),
                    )
                    _announce(args, ready)
                    await _tell_if_waiting(args, temporal)
                await asyncio.wait({running, stopping}, return_when=asyncio.FIRST_COMPLETED)
                await _shut_down(worker, running, args)
        finally:
            stopping.cancel()
            await _shut_down(worker, running, args)
        await running


async def _tell_if_waiting(args: WorkerArgs, temporal: Client) -> None:
    """A version is given no runs before somebody says so: whoever starts the first may not know."""
    own = version_of(args.settings)
    if own is None:
        return
    with contextlib.suppress(RPCError):
        task_queue = await describe_task_queue(temporal, args.settings.task_queue)
        waiting = new_runs_problem(task_queue.routing, own)
        if waiting is not None:
            args.notify(waiting)


async def _shut_down(worker: Worker, running: "asyncio.Task[None]", args: WorkerArgs) -> None:
    """Ask for no more work; calls in flight may finish within the grace, then they are handed over.

    Handed over is a failed attempt, told to the server: another worker has it a second later. A call
    that cannot be cancelled is left behind, and tried again when its heartbeats stay away.
    """
    if running.done():
        return
    longest = args.settings.graceful_shutdown_timeout + _LAST_WORDS
    try:
        await asyncio.wait_for(worker.shutdown(), longest.total_seconds())
    except TimeoutError:
        args.notify("leaving calls behind that neither end nor can be cancelled: they are tried again")
        exit_now(1)


def served_names(members: Sequence[Member]) -> tuple[str, ...]:
    """The names of all that can be started, those first that nobody else runs: people start with them."""
    everyone = members_by_name(members)
    below = {name for one in everyone.values() for name in one.members}
    return tuple(sorted(everyone, key=lambda name: name in below))


def worker_options(settings: Settings) -> dict[str, Any]:
    """Arguments of Temporal's Worker, from the settings; the plugin adds what agents need.

    Raises:
        DefinitionError: a deployment without a build id.

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
            # A run keeps the code that decides, as it keeps its agent; parked runs keep their version alive.
            default_versioning_behavior=VersioningBehavior.PINNED,
        )
    return options


def check_models(agents: Sequence[Agent], models: Mapping[str, Model]) -> list[str]:
    """Ask each agent's providers whether they would take its calls; gives what is missing, such as a key.

    Raises:
        DefinitionError: a provider there is not, or settings that it does not know.

    """
    warnings: list[str] = []
    for agent in agents:
        for config in agent.models:
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
                warnings.append(f"agent {agent.name!r}, model {config.name}: {error}")
    return warnings


# -- signals, readiness, health


@contextlib.contextmanager
def _signals(stop: asyncio.Event, tell: Callable[[str], None]) -> Generator[None, None, None]:
    loop = asyncio.get_running_loop()

    def on_signal(number: int) -> None:
        if stop.is_set():
            tell("leaving at once")
            exit_now(128 + number)
        tell("stopping: what is in flight may finish; once more leaves at once")
        stop.set()

    wanted = (signal.SIGTERM, signal.SIGINT)
    for number in wanted:
        loop.add_signal_handler(number, on_signal, number)
    try:
        yield
    finally:
        for number in wanted:
            loop.remove_signal_handler(number)


async def _polls(
    temporal: Client,
    task_queue: str,
    worker: Worker,
    running: "asyncio.Task[None]",
    stopping: "asyncio.Task[Any]",
) -> bool:
    """True once the server has seen the worker poll; False when it ended before."""
    active: Any = worker.config(active_config=True)
    identity = str(active["identity"] or temporal.identity)
    async with asyncio.timeout(_POLLING_WITHIN):
        while not running.done() and not stopping.done():
            described = await describe_task_queue(temporal, task_queue)
            if any(poller.identity == identity for poller in described.pollers):
                return True
            await asyncio.sleep(0.02)
    return False


@contextlib.asynccontextmanager
async def _health(
    settings: Settings, worker: Worker, temporal: Client, stop: asyncio.Event, circuits: Circuits
) -> AsyncGenerator[str | None, None]:
    if settings.health_address is None:
        yield None
        return

    async def ready() -> str | None:
        if stop.is_set():
            return "the worker is stopping"
        if not worker.is_running or worker.is_shutdown:
            return "the worker does not take work"
        return await _server_missing(temporal)

    async with health.serve(settings.health_address, ready, circuits.states) as address:
        yield address


async def _server_missing(temporal: Client) -> str | None:
    try:
        serves = await temporal.service_client.check_health(timeout=timedelta(seconds=2))
    except (RPCError, RuntimeError):
        serves = False
    return None if serves else "the Temporal server does not answer"


def _announce(args: WorkerArgs, ready: Ready) -> None:
    if args.ready_fd is None:
        args.notify(ready.line())
        return
    with contextlib.suppress(OSError), os.fdopen(args.ready_fd, "w") as told:
        told.write(json.dumps(ready.__dict__) + "\n")


def stop_with_parent(parent: int) -> None:
    """Be told to stop when that process dies, however it dies. Linux only; elsewhere nothing."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG
        if os.getppid() != parent:
            exit_now(0)


def exit_now(code: int) -> None:
    """End the process now, everything said.

    Python's own way out crashes in 5 to 15 of 100 short processes that used Temporal's SDK
    (sdk-python issue 300).
    """
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


def run_process(body: Callable[[], Awaitable[None]]) -> None:
    """Run a process's body to its end and leave: 0, 2 for what the caller can mend, 5 for no server."""
    try:
        asyncio.run(_awaited(body))
        code = 0
    except NotReachable as error:
        code = _said(error, 5)
    except DefinitionError as error:
        code = _said(error, 2)
    except KeyboardInterrupt:
        code = 130
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    exit_now(code)


def print_stderr(line: str) -> None:
    """A line on stderr."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()


async def _awaited(body: Callable[[], Awaitable[None]]) -> None:
    await body()


def _said(error: Exception, code: int) -> int:
    print_stderr(f"error: {error}")
    return code
