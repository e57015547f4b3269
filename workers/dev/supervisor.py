"""Command `perdure dev`: the embedded server, and a worker that restarts when the files change.

The worker is a process of its own. A change restarts it with a clean interpreter, and its crash ends
neither the server nor this process. Runs are in the server's database and continue with the next worker.
"""

import argparse
import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal

from perdure.errors import DefinitionError, NotReachable
from perdure.settings import Settings, load_settings, variables

from ..load import folder_of
from ..worker import print_stderr, run_process
from .server import DevServer, is_temporal

_UI_PORT_OFFSET: Final = 1000
_GRACE: Final = "2s"
"""Time for pending activities to finish after a change; then Temporal retries them on the next worker."""
_STOP_SECONDS: Final = 8.0
_MAX_DELAY: Final = 10.0
_STABLE_SECONDS: Final = 30.0
"""Age from which a crashed worker counts as having worked: the restart delay begins anew."""

Ending = Literal["changed", "crashed", "unusable", "stopped"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Options of `perdure dev`, with all defaults filled in."""

    files: tuple[str, ...]
    port: int
    ui_port: int | Literal[False]
    db: Path
    settings: Settings

    @property
    def folders(self) -> list[Path]:
        """Folders whose changes restart the worker."""
        return sorted({folder_of(file) for file in self.files})


async def develop(plan: Plan) -> None:
    """Run server and worker until SIGINT or SIGTERM.

    Raises:
        DefinitionError: a port is busy, or the server does not start.
        NotReachable: the server ended by itself.

    """
    await _check_no_server(plan)
    log = plan.db.parent / "server.log"
    async with DevServer.start(plan.db, plan.port, plan.ui_port, log_file=log) as server:
        with _stop_on_signals() as stop:
            print_stderr(f"server   {server.address}   (runs are kept in {plan.db})")
            if server.ui_url:
                print_stderr(f"UI       {server.ui_url}")
            supervision = asyncio.create_task(Supervisor(plan, server, stop).run())
            server_end = asyncio.create_task(_wait_for_end(server))
            await asyncio.wait({supervision, server_end}, return_when=asyncio.FIRST_COMPLETED)
            server_end.cancel()
            server_died = not stop.is_set()
            stop.set()
            await supervision
            if server_died:
                raise NotReachable(f"the server ended by itself; it may have said why in {log}")
    print_stderr("stopped; the runs are kept, and `perdure dev` goes on with them")


async def _check_no_server(plan: Plan) -> None:
    """Raise DefinitionError if a Temporal server has the port already, with how to use that server."""
    address = f"127.0.0.1:{plan.port}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", plan.port)) != 0:
            return
    if await is_temporal(address, within=0.7):
        raise DefinitionError(
            f"a Temporal server answers at {address} already; serve your agents there with "
            f"`perdure worker {' '.join(plan.files)} --address {address}`, or start another with --port"
        )


async def _wait_for_end(server: DevServer) -> None:
    """Return when the server's process has ended."""
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(server.pid, 0)
            await asyncio.sleep(1)


@contextlib.contextmanager
def _stop_on_signals() -> Generator[asyncio.Event, None, None]:
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop.set)
    yield stop


@dataclass(kw_only=True)
class _Child:
    """A worker process."""

    process: asyncio.subprocess.Process
    ready: "asyncio.Task[dict[str, Any] | None]"
    """Its `Ready` as JSON; None if the process ended before it was ready."""
    began: float = field(default_factory=time.monotonic)

    async def end(self) -> None:
        """Terminate the process; kill it if it does not end in time."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    self.process.send_signal(number)
                    await asyncio.wait_for(self.process.wait(), _STOP_SECONDS)
        self.ready.cancel()


class Supervisor:
    """Keeps a worker running: restarts it after a change of the files, and after a crash."""

    def __init__(self, plan: Plan, server: DevServer, stop: asyncio.Event) -> None:
        self._plan = plan
        self._server = server
        self._stop = stop
        self._changed = asyncio.Event()
        self._delay = 0.0
        self._announced = False
        self._warnings: list[str] = []

    async def run(self) -> None:
        """Keep a worker running until the stop event is set."""
        watching = asyncio.create_task(self._watch())
        try:
            while not self._stop.is_set():
                # Cleared before the start: a change during the start restarts the worker again.
                self._changed.clear()
                match await self._run_worker():
                    case "crashed":
                        await self._wait_before_restart()
                    case "unusable":
                        # A restart would fail again until a file changes.
                        print_stderr("waiting for a change of the file")
                        await self._wait_for_first(self._changed.wait(), self._stop.wait())
                    case "changed" | "stopped":
                        pass
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _run_worker(self) -> Ending:
        """Run a worker process until it ends, a file changes, or the stop event is set."""
        child = await self._start()
        try:
            ready = asyncio.create_task(self._announce(child))
            await self._wait_for_first(child.process.wait(), self._changed.wait(), self._stop.wait())
            ready.cancel()
            return self._ending_of(child)
        finally:
            await child.end()

    def _ending_of(self, child: _Child) -> Ending:
        """Return how the worker ended, and print it; for a crash, set the delay before the restart."""
        if self._stop.is_set():
            return "stopped"
        code = child.process.returncode
        if code is None:
            print_stderr("changed: starting the worker again")
            return "changed"
        if code == 2:  # the worker has printed what is wrong with the file
            return "unusable"
        alive = time.monotonic() - child.began
        self._delay = min(_MAX_DELAY, max(0.25, self._delay * 2)) if alive < _STABLE_SECONDS else 0.25
        what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        print_stderr(f"the worker {what}; starting it again in {self._delay:g} s")
        return "crashed"

    async def _wait_before_restart(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._wait_for_first(self._changed.wait(), self._stop.wait()), self._delay)

    async def _start(self) -> _Child:
        read, write = os.pipe()
        settings = self._plan.settings
        command = [sys.executable, "-m", "perdure.workers", *self._plan.files]
        command += ["--address", self._server.address, "--namespace", "default"]
        command += ["--task-queue", settings.task_queue]
        command += ["--ready-fd", str(write), "--tied-to", str(os.getpid())]
        # A session of its own, because Ctrl-C reaches the terminal's whole process group: the worker would
        # get the signal twice, and a second signal makes it exit without its grace.
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(write,),
            start_new_session=True,
            env=_environment(),
        )
        os.close(write)  # ours; the pipe ends when the worker's copy is closed
        return _Child(process=process, ready=asyncio.create_task(_read_ready(read)))

    async def _announce(self, child: _Child) -> None:
        ready = await child.ready
        if ready is None:
            return
        agents: list[str] = ready["agents"]
        # Warnings are printed when they change, not after each save.
        if ready["warnings"] != self._warnings:
            self._warnings = ready["warnings"]
            for warning in self._warnings:
                print_stderr(f"warning  {warning}")
        print_stderr(f"{'serving' if self._announced else 'agents '}  {', '.join(agents)}")
        if not self._announced:
            print_stderr(f"\nnow, in another terminal:\n\n  {self._next_command(agents[0])}\n\nCtrl-C ends.")
        self._announced = True

    def _next_command(self, agent: str) -> str:
        words = ["perdure", "run", agent, '"..."']
        if not _is_address_of(self._plan.settings.address, self._plan.port):
            words += ["--address", self._server.address]
        if self._plan.settings.task_queue != load_settings().task_queue:
            words += ["--task-queue", self._plan.settings.task_queue]
        return " ".join(words)

    async def _watch(self) -> None:
        async for _ in _changes(self._plan.folders):
            self._changed.set()

    async def _wait_for_first(self, *events: Any) -> None:
        tasks = [asyncio.ensure_future(event) for event in events]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


async def _read_ready(read: int) -> dict[str, Any] | None:
    """Return the worker's `Ready` from the pipe, or None if the worker ended before."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    with os.fdopen(read, "rb") as pipe:
        transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), pipe)
        try:
            line = await reader.readline()
        finally:
            transport.close()
    return json.loads(line) if line else None


def _environment() -> dict[str, str]:
    """Return the worker's environment: ours, with a short grace unless the user has set another.

    After each save a developer waits for the worker to restart.
    """
    return {variables("graceful_shutdown_timeout")[0]: _GRACE, **os.environ, "PYTHONUNBUFFERED": "1"}


async def _changes(folders: Sequence[Path]) -> AsyncIterator[None]:
    """Yield after each change of a file that agents may import."""
    try:
        from watchfiles import PythonFilter, awatch  # pyright: ignore[reportUnknownVariableType]
    except ImportError:
        print_stderr('changes of the files are not noticed: pip install "perdure[dev]"')
        return
    relevant = PythonFilter()
    async for changes in awatch(*folders, watch_filter=relevant, debounce=200, step=50):
        if any(_belongs_to_agents(Path(path), folders) for _, path in changes):
            yield


def _belongs_to_agents(path: Path, folders: Sequence[Path]) -> bool:
    """Return whether agents may import this file: not if it is a test's or of a virtual environment."""
    roots = {folder.resolve() for folder in folders}
    for folder in path.resolve().parents:
        if folder in roots:
            return True
        if folder.name == "tests" or (folder / "pyvenv.cfg").exists():
            return False
    return True


# -- the command line


def _is_address_of(address: str, port: int) -> bool:
    """Return whether the address is that port on this machine, so that clients need no `--address`."""
    host, _, configured = address.rpartition(":")
    return host in ("localhost", "127.0.0.1") and int(configured) == port


def _default_port(settings: Settings) -> int:
    """Return the port of the settings' address if that is this machine, else Temporal's own port."""
    host, _, port = settings.address.rpartition(":")
    return int(port) if host in ("localhost", "127.0.0.1") else 7233


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        "perdure dev", description="A Temporal server and a worker for the agents of the files, in one."
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="path/to/file.py, or package.module")
    parser.add_argument("--port", type=int, help="port of the server (7233)")
    parser.add_argument("--ui-port", type=int, help="port of the web UI (the server's + 1000)")
    parser.add_argument("--headless", action="store_true", help="no web UI")
    parser.add_argument("--db", type=Path, help="file of the database (temporal.db in PERDURE_HOME)")
    parser.add_argument("--task-queue", help="task queue of the agents")
    return parser.parse_args(arguments)


def make_plan(args: argparse.Namespace) -> Plan:
    """Return the plan for a command line.

    Raises:
        DefinitionError: the settings are wrong.

    """
    settings = load_settings(task_queue=args.task_queue or None)
    port = args.port or _default_port(settings)
    return Plan(
        files=tuple(args.files),
        port=port,
        ui_port=False if args.headless else args.ui_port or port + _UI_PORT_OFFSET,
        db=(args.db or settings.home / DevServer.DATABASE_FILE).expanduser(),
        settings=settings,
    )


async def _develop(args: argparse.Namespace) -> None:
    await develop(make_plan(args))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run server and worker, and end the process."""
    args = _parse(arguments)
    run_process(lambda: _develop(args))
