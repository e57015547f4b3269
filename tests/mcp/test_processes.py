"""Processes of MCP servers: they end with their worker, however it ends, and a killed worker repeats no write."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from perdure import connect
from perdure.messages import ToolResult
from perdure.settings import Settings

from ..conftest import until
from ..process.conftest import Crew
from ..waiting import wait_for
from .conftest import ROOT, Served, is_alive

GUARD = ROOT / "activities" / "mcp" / "guard.py"
STUBBORN = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = os.fork()
with open(sys.argv[1], "a") as file:
    file.write(f"{os.getpid()}\\n")
while True:
    time.sleep(60)
"""
WORKER = """
import os, subprocess, sys
subprocess.Popen([sys.executable, "-I", "-S", sys.argv[1], str(os.getpid()), sys.executable, "-c", *sys.argv[2:]],
                 stdin=subprocess.PIPE, start_new_session=True)
sys.stdin.read()
"""


@pytest.fixture
def worker(tmp_path: Path) -> Iterator["subprocess.Popen[bytes]"]:
    """A process that has started a guard with a server that does not want to end, and a child of that."""
    command = [sys.executable, "-c", WORKER, str(GUARD), STUBBORN, str(tmp_path / "pids")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    yield process
    process.kill()
    process.wait()
    for pid in pids_of(tmp_path):  # where the guard was killed, the server's own child is left
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert process.stdin is not None
    process.stdin.close()


def pids_of(folder: Path) -> list[int]:
    path = folder / "pids"
    found = [int(line) for line in path.read_text().split()] if path.exists() else []
    return found if len(found) == 2 else []


def test_no_process_outlives_a_killed_worker(worker: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    """After `kill -9` of a worker, a server that ignores SIGTERM is killed, with its own children."""
    pids = wait_for(lambda: pids_of(tmp_path), "the server to start")
    assert all(map(is_alive, pids))
    worker.kill()
    worker.wait()
    wait_for(lambda: not any(map(is_alive, pids)), "the server to end")


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's death")
def test_a_killed_guard_takes_its_server_along(worker: "subprocess.Popen[bytes]", tmp_path: Path) -> None:
    """Where somebody kills the guard itself, the server ends too."""
    [server, *_] = sorted(wait_for(lambda: pids_of(tmp_path), "the server to start"))
    stat = Path(f"/proc/{server}/stat").read_text()
    os.kill(int(stat.rpartition(")")[2].split()[1]), signal.SIGKILL)
    wait_for(lambda: not is_alive(server), "the server to end")


def test_a_missing_program_is_named() -> None:
    """A program that there is not is named on stderr, and the guard ends."""
    command = [sys.executable, "-I", "-S", str(GUARD), str(os.getpid()), "/nonexistent/x"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, start_new_session=True)
    assert done.returncode == 127
    assert "'/nonexistent/x' does not start" in done.stderr


@pytest.fixture
def crew(settings: Settings, served: Served, tmp_path: Path) -> Iterator[Crew]:
    """A worker process whose agent calls a server."""
    program = ("perdure.workers", "tests.mcp.crew")
    made = Crew(settings=settings, ledger=served.folder, log=tmp_path / "worker.log", program=program)
    made.start()
    try:
        yield made
    finally:
        made.end()


async def test_a_killed_worker_repeats_no_write(crew: Crew, settings: Settings, served: Served) -> None:
    """A write whose worker died may have happened and is not made again; a read is. No server is left over."""
    client = await connect(settings=settings)
    run = await client.start("slow", "go")

    async def both_called() -> bool:
        return served.lines("calls").count("slow") == 2

    await until(both_called)
    before = served.pids()
    crew.kill()
    wait_for(lambda: not any(map(is_alive, before)), "the servers to end")
    served.write("gate")
    crew.start()
    await run.result()
    write, read = [
        part for message in await run.transcript() for part in message.parts if isinstance(part, ToolResult)
    ]
    assert read.text == "finished"
    assert write.is_error
    assert write.may_have_effect
    assert "was not made again" in write.text
    assert served.lines("calls").count("slow") == 3, "the read once more"
    assert crew.stop() == 0
    assert not any(map(is_alive, served.pids()))
