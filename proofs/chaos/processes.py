"""Parts of a run as processes that can be started, killed and started again."""

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Generator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from pathlib import Path
from typing import Any

from perdure.workers.dev.server import DevServer, free_port

from .environments import ROOT

_READY_WITHIN = 120.0
_LINE = 16 * 1024 * 1024


def environment(**more: str) -> dict[str, str]:
    """Return the environment of a process, without settings of the caller's that would change it."""
    inherited = {
        name: value for name, value in os.environ.items() if not name.startswith(("PERDURE_", "OPENAI_"))
    }
    return {**inherited, "PYTHONPATH": str(ROOT), **more}


@contextmanager
def work_folder(keep: Path | None, prefix: str) -> Generator[Path]:
    """Open the folder of a run: `keep`, which stays, or a temporary one named by `prefix`."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=True)
        yield keep
        return
    with tempfile.TemporaryDirectory(prefix=prefix, ignore_cleanup_errors=True) as folder:
        yield Path(folder)


class Server:
    """Temporal server that keeps its port and its database over restarts."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self._context: AbstractAsyncContextManager[DevServer] | None = None
        self._running: DevServer | None = None

    @property
    def address(self) -> str:
        """Address of the server, whether or not it runs."""
        return f"127.0.0.1:{self._port}"

    @property
    def port(self) -> int:
        """Port of the server."""
        return self._port

    async def start(self) -> None:
        """Start the server; it answers when this returns."""
        log = self._folder / "server.log"
        self._context = DevServer.start(
            db=self._folder / "temporal.db", port=self._port, ui_port=False, log_file=log
        )
        self._running = await self._context.__aenter__()

    async def kill(self) -> None:
        """Send `kill -9`, and wait until the process is gone."""
        if self._running is not None:
            with contextlib.suppress(ProcessLookupError):  # it may have ended by itself
                os.kill(self._running.pid, signal.SIGKILL)
        await self.stop()

    async def stop(self) -> None:
        """Stop the server, if it runs."""
        if self._context is not None:
            context, self._context, self._running = self._context, None, None
            await context.__aexit__(None, None, None)


class Linked:
    """Process that reports when a fault's moment has come, and waits: the provider, or the tools."""

    def __init__(self, command: Sequence[str], log: Path) -> None:
        self._command = command
        self._log = log
        self._process: asyncio.subprocess.Process | None = None
        self.port = 0

    async def start(self, *more: str) -> None:
        """Start the process; it serves when this returns, on the same port each time."""
        with self._log.open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                *more,
                cwd=ROOT,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                env=environment(),
                limit=_LINE,
            )
        async with asyncio.timeout(_READY_WITHIN):
            message = await self._read_message()
        if message is None:
            raise RuntimeError(f"a process did not start: {self._log.read_text()[-500:]}")
        self.port = message["ready"]

    async def messages(self) -> AsyncIterator[dict[str, Any]]:
        """Yield the messages of the process until it ends."""
        while (message := await self._read_message()) is not None:
            yield message

    async def release(self, fault: int) -> None:
        """Let the process go on after a fault."""
        assert self._process is not None
        assert self._process.stdin is not None
        # The process may have been killed meanwhile by another fault.
        with contextlib.suppress(ConnectionError):
            self._process.stdin.write(json.dumps({"go": fault}).encode() + b"\n")
            await self._process.stdin.drain()

    async def kill(self) -> None:
        """Send `kill -9`, and wait until the process is gone."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()

    async def _read_message(self) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdout is not None
        line = await self._process.stdout.readline()
        return json.loads(line) if line else None


class Worker:
    """Worker that is started again whenever it ends, as a pod is."""

    def __init__(self, name: str, command: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        self.name = name
        self.deaths = 0
        """Number of times that it ended by itself."""
        self.on_start: Callable[[int], None] = lambda pid: None
        """Callback for the pid of each new process."""
        self._command, self._env, self._log = command, env, log
        self._process: asyncio.subprocess.Process | None = None
        self._ready = asyncio.Event()
        self._killed = False
        self._keeping: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the worker; it polls when this returns."""
        self._keeping = asyncio.create_task(self._keep())
        ready = asyncio.create_task(self._ready.wait())
        await asyncio.wait({ready, self._keeping}, timeout=_READY_WITHIN, return_when=asyncio.FIRST_COMPLETED)
        if not ready.done():
            raise RuntimeError(f"{self.name} did not start: {self._log.read_text()[-800:]}")

    @property
    def pid(self) -> int | None:
        """Pid of the current process, or None."""
        return None if self._process is None or self._process.returncode is not None else self._process.pid

    def kill(self) -> None:
        """Send `kill -9` to the current process."""
        if self._process is not None and self._process.returncode is None:
            self._killed = True
            self._process.kill()

    async def stop(self) -> None:
        """End the worker for good."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)
        self.kill()
        if self._process is not None:
            await self._process.wait()

    async def _keep(self) -> None:
        while True:
            self._killed = False
            # Its log goes through a pipe: a full disk must neither silence the worker nor fail in its log.
            self._process = await asyncio.create_subprocess_exec(
                *self._command,
                cwd=ROOT,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
                env={**environment(), **self._env},
                limit=_LINE,
            )
            self.on_start(self._process.pid)
            await self._copy_log(self._process)
            await self._process.wait()
            if not self._killed:
                self.deaths += 1
                await asyncio.sleep(0.5)  # a worker that cannot start must not take the whole machine

    async def _copy_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        with self._log.open("ab") as log:
            while line := await process.stderr.readline():
                log.write(line)
                log.flush()
                if line.startswith(b"ready"):
                    self._ready.set()


def fill_disk(pid: int, *, full: bool) -> None:
    """Forbid a process to write to files, or allow it again; pipes and sockets are not affected."""
    _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (0 if full else hard, hard))


def own_python() -> str:
    """Return the interpreter that runs this process."""
    return sys.executable
