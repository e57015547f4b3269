"""`python -m perdure.workers.dev FILE...`: the embedded server, and a worker that follows the files.

The worker is a process of its own: a change restarts it with a clean interpreter, and a crash of it
takes neither the server nor this process along. Runs live in the server's database and go on.
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

_UI_DISTANCE: Final = 1000
_GRACE: Final = "2s"
"""How long calls in flight may go on when a file has changed; Temporal tries them again after."""
_STOPPED_WITHIN: Final = 8.0
_LONGEST_DELAY: Final = 10.0
_SETTLED: Final = 30.0
"""Seconds after which a worker that crashes is taken for one that had worked."""

Ended = Literal["changed", "crashed", "unusable", "told"]


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What the command line asks for, everything decided."""

    files: tuple[str, ...]
    port: int
    ui_port: int | Literal[False]
    db: Path
    settings: Settings

    @property
    def folders(self) -> list[Path]:
        """Where changes count."""
        return sorted({folder_of(file) for file in self.files})


async def develop(plan: Plan) -> None:
    """Run server and worker until SIGINT or SIGTERM.

    Raises:
        DefinitionError: a port is busy, or the server does not start.
        NotReachable: the server ended.

    """
    await _refuse_taken(plan)
    log = plan.db.parent / "server.log"
    async with DevServer.start(plan.db, plan.port, plan.ui_port, log_file=log) as server:
        with _stop_on_signals() as stop:
            print_stderr(f"server   {server.address}   (runs are kept in {plan.db})")
            if server.ui_url:
                print_stderr(f"UI       {server.ui_url}")
            keeping = asyncio.create_task(Supervisor(plan, server, stop).keep())
            watching = asyncio.create_task(_gone(server))
            await asyncio.wait({keeping, watching}, return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
            died = not stop.is_set()
            stop.set()
            await keeping
            if died:
                raise NotReachable(f"the server ended by itself; it may have said why in {log}")
    print_stderr("stopped; the runs are kept, and `perdure dev` goes on with them")


async def _refuse_taken(plan: Plan) -> None:
    """A server that answers already may be meant to be used: say how."""
    address = f"127.0.0.1:{plan.port}"
    with socket.socket() as probe:
        if probe.connect_ex(("127.0.0.1", plan.port)) != 0:
            return
    if await is_temporal(address, within=0.7):
        raise DefinitionError(
            f"a Temporal server answers at {address} already; serve your agents there with "
            f"`perdure worker {' '.join(plan.files)} --address {address}`, or start another with --port"
        )


async def _gone(server: DevServer) -> None:
    """Return when the server's process is no more."""
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
    """The worker process of the moment."""

    process: asyncio.subprocess.Process
    ready: "asyncio.Task[dict[str, Any] | None]"
    began: float = field(default_factory=time.monotonic)

    async def end(self) -> None:
        """Ask it to end; after a grace, make it."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.process.returncode is None:
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    self.process.send_signal(number)
                    await asyncio.wait_for(self.process.wait(), _STOPPED_WITHIN)
        self.ready.cancel()


class Supervisor:
    """Keeps a worker running: restarts it when a file changes, and when it dies."""

    def __init__(self, plan: Plan, server: DevServer, stop: asyncio.Event) -> None:
        self._plan = plan
        self._server = server
        self._stop = stop
        self._changed = asyncio.Event()
        self._delay = 0.0
        self._introduced = False
        self._warned: list[str] = []

    async def keep(self) -> None:
        """Until told to stop."""
        watching = asyncio.create_task(self._watch())
        try:
            while not self._stop.is_set():
                self._changed.clear()
                match await self._life():
                    case "crashed":
                        await self._pause()
                    case "unusable":
                        print_stderr("waiting for a change of the file")
                        await self._first(self._changed.wait(), self._stop.wait())
                    case "changed" | "told":
                        pass
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)

    async def _life(self) -> Ended:
        """One worker process, from its start to its end."""
        child = await self._start()
        try:
            ready = asyncio.create_task(self._introduce(child))
            await self._first(child.process.wait(), self._changed.wait(), self._stop.wait())
            ready.cancel()
            return self._verdict(child)
        finally:
            await child.end()

    def _verdict(self, child: _Child) -> Ended:
        if self._stop.is_set():
            return "told"
        code = child.process.returncode
        if code is None:
            print_stderr("changed: starting the worker again")
            return "changed"
        if code == 2:  # it has said what is wrong with the file
            return "unusable"
        alive = time.monotonic() - child.began
        self._delay = min(_LONGEST_DELAY, max(0.25, self._delay * 2)) if alive < _SETTLED else 0.25
        what = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with code {code}"
        print_stderr(f"the worker {what}; starting it again in {self._delay:g} s")
        return "crashed"

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._first(self._changed.wait(), self._stop.wait()), self._delay)

    async def _start(self) -> _Child:
        read, write = os.pipe()
        settings = self._plan.settings
        command = [sys.executable, "-m", "perdure.workers", *self._plan.files]
        command += ["--address", self._server.address, "--namespace", "default"]
        command += ["--task-queue", settings.task_queue]
        command += ["--ready-fd", str(write), "--tied-to", str(os.getpid())]
        # A session of its own: Ctrl-C reaches the whole group of a terminal, and we tell it ourselves.
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=asyncio.subprocess.DEVNULL,
            pass_fds=(write,),
            start_new_session=True,
            env=_environment(),
        )
        os.close(write)
        return _Child(process=process, ready=asyncio.create_task(_heard(read)))

    async def _introduce(self, child: _Child) -> None:
        said = await child.ready
        if said is None:
            return
        agents: list[str] = said["agents"]
        if said["warnings"] != self._warned:
            self._warned = said["warnings"]
            for warning in self._warned:
                print_stderr(f"warning  {warning}")
        print_stderr(f"{'serving' if self._introduced else 'agents '}  {', '.join(agents)}")
        if not self._introduced:
            print_stderr(f"\nnow, in another terminal:\n\n  {self._next_command(agents[0])}\n\nCtrl-C ends.")
        self._introduced = True

    def _next_command(self, agent: str) -> str:
        words = ["perdure", "run", agent, '"..."']
        if not _is_default(self._plan.settings.address, self._plan.port):
            words += ["--address", self._server.address]
        if self._plan.settings.task_queue != load_settings().task_queue:
            words += ["--task-queue", self._plan.settings.task_queue]
        return " ".join(words)

    async def _watch(self) -> None:
        async for _ in _changes(self._plan.folders):
            self._changed.set()

    async def _first(self, *events: Any) -> None:
        tasks = [asyncio.ensure_future(event) for event in events]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()


async def _heard(read: int) -> dict[str, Any] | None:
    """The worker's word that it is ready, or None when it ended without."""
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
    """Ours, with a short grace: whoever has just saved a file waits for the worker."""
    return {variables("graceful_shutdown_timeout")[0]: _GRACE, **os.environ, "PYTHONUNBUFFERED": "1"}


async def _changes(folders: Sequence[Path]) -> AsyncIterator[None]:
    try:
        from watchfiles import PythonFilter, awatch  # pyright: ignore[reportUnknownVariableType]
    except ImportError:
        print_stderr('changes of the files are not noticed: pip install "perdure[dev]"')
        return
    relevant = PythonFilter()
    async for changes in awatch(*folders, watch_filter=relevant, debounce=200, step=50):
        if any(_is_the_agents(Path(path), folders) for _, path in changes):
            yield


def _is_the_agents(path: Path, folders: Sequence[Path]) -> bool:
    """Whether an agent may be made of this file: not when it is a test's, or of a virtual environment."""
    roots = {folder.resolve() for folder in folders}
    for folder in path.resolve().parents:
        if folder in roots:
            return True
        if folder.name == "tests" or (folder / "pyvenv.cfg").exists():
            return False
    return True


# -- the command line


def _is_default(address: str, port: int) -> bool:
    """Whether a client with these settings finds the server by itself."""
    host, _, configured = address.rpartition(":")
    return host in ("localhost", "127.0.0.1") and int(configured) == port


def _default_port(settings: Settings) -> int:
    """The one that clients will ask, when they ask this machine; else Temporal's own."""
    host, _, port = settings.address.rpartition(":")
    return int(port) if host in ("localhost", "127.0.0.1") else 7233


def _read(arguments: Sequence[str] | None) -> argparse.Namespace:
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


def make_plan(given: argparse.Namespace) -> Plan:
    """The plan for that command line.

    Raises:
        DefinitionError: the settings are wrong.

    """
    settings = load_settings(task_queue=given.task_queue or None)
    port = given.port or _default_port(settings)
    return Plan(
        files=tuple(given.files),
        port=port,
        ui_port=False if given.headless else given.ui_port or port + _UI_DISTANCE,
        db=(given.db or settings.home / DevServer.DATABASE_FILE).expanduser(),
        settings=settings,
    )


async def _develop(given: argparse.Namespace) -> None:
    await develop(make_plan(given))


def main(arguments: Sequence[str] | None = None) -> None:
    """Develop, and leave the process."""
    given = _read(arguments)
    run_process(lambda: _develop(given))
