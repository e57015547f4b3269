"""What the demo plays on: the embedded server, and one worker at a time, each a process of its own."""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from collections.abc import AsyncGenerator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

from perdure import Client, connect
from perdure.workers.dev.server import DevServer

AGENT_FILE = Path(__file__).with_name("agent.py")
PORT, UI_PORT = 7233, 8233

T = TypeVar("T")


class Stage:
    """The server, the worker that is up now, and a client."""

    def __init__(self, home: Path, server: DevServer, client: Client) -> None:
        self.server = server
        self.client = client
        self.worker_log = home / "worker.log"
        self._worker: asyncio.subprocess.Process | None = None

    @property
    def ui(self) -> str:
        return str(self.server.ui_url)

    def link(self, run_id: str) -> str:
        """The run's page in the UI."""
        return f"{self.ui}/namespaces/{self.client.temporal.namespace}/workflows/{run_id}"

    async def start_worker(self) -> int:
        """Start `python -m perdure.workers agent.py`; returns its pid once it takes work."""
        with self.worker_log.open("a") as log:
            said_before = log.tell()
            self._worker = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "perdure.workers", str(AGENT_FILE), "--tied-to", str(os.getpid())),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C is for the demo, which stops its worker itself
            )
        await until(lambda: self._is_ready(said_before), "the worker to take work")
        return self._worker.pid

    async def _is_ready(self, said_before: int) -> bool:
        said = self.worker_log.read_text()[said_before:]
        if self._worker is not None and self._worker.returncode is not None:
            raise RuntimeError(f"the worker ended at once:\n{said.strip()}")
        return "ready:" in said

    async def kill_worker(self) -> int:
        """`kill -9`; returns the pid of the dead."""
        assert self._worker is not None
        self._worker.kill()
        await self._worker.wait()
        return self._worker.pid

    async def stop_worker(self) -> None:
        """Ask it to end; after a grace, make it."""
        worker = self._worker
        for signal_number in (signal.SIGTERM, signal.SIGKILL):
            if worker is not None and worker.returncode is None:
                with contextlib.suppress(ProcessLookupError, TimeoutError):
                    worker.send_signal(signal_number)
                    await asyncio.wait_for(worker.wait(), 5)


@contextlib.asynccontextmanager
async def stage(home: Path, *, usual_ports: bool) -> AsyncGenerator[Stage, None]:
    """Server and worker while the block runs; both are stopped after it, whatever happens in it.

    `home` and the database in it are told to this process and the worker alike, by the environment.
    """
    server = DevServer.start(
        home / DevServer.DATABASE_FILE,
        port=_or_free(PORT) if usual_ports else None,
        ui_port=_or_free(UI_PORT) if usual_ports else None,
        log_file=home / "server.log",
    )
    async with server as running:
        os.environ.update(
            PERDURE_ADDRESS=running.address,
            PERDURE_NAMESPACE="default",
            PERDURE_TASK_QUEUE="perdure",
            PERDURE_TLS="false",
            PERDURE_HOME=str(home),
            PERDURE_BLOB_STORE=f"file:{home / 'blobs'}",
            SUPPORT_DESK_DB=str(home / "support_desk.db"),
        )
        set_up = Stage(home, running, await connect())
        try:
            yield set_up
        finally:
            await set_up.stop_worker()


async def until(
    found: Callable[[], Coroutine[Any, Any, T | None]], what: str, *, within: float | None = 30
) -> T:
    """The first true value of `found`. Raises TimeoutError, saying what did not come."""
    try:
        async with asyncio.timeout(within):
            while True:
                value = await found()
                if value:
                    return value
                await asyncio.sleep(0.05)
    except TimeoutError:
        raise TimeoutError(f"waited {within} s for {what}") from None


def _or_free(port: int) -> int | None:
    """The port when nobody listens there, else None, which means any free one."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return None
    return port
