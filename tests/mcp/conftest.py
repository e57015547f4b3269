"""MCP servers for tests: real processes of the official SDK, by stdio and by HTTP."""

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from perdure import McpServer

from ..waiting import wait_for

ROOT = Path(__file__).parents[2]


@dataclass
class Served:
    """A server's folder, its process where it serves HTTP, and the definition for an agent."""

    folder: Path
    port: int
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list[subprocess.Popen[bytes]])

    def stdio(self, name: str = "t", **settings: Any) -> McpServer:
        """Return the definition of the server as a process."""
        command = [sys.executable, "-m", "tests.mcp.server", str(self.folder)]
        return McpServer(name=name, command=command, cwd=str(ROOT), **settings)

    def http(self, name: str = "t", **settings: Any) -> McpServer:
        """Return the definition of the server at its address."""
        return McpServer(name=name, url=f"http://127.0.0.1:{self.port}/mcp", **settings)

    def start(self) -> None:
        """Serve HTTP."""
        command = [sys.executable, "-m", "tests.mcp.server", str(self.folder), str(self.port)]
        self.processes.append(subprocess.Popen(command, cwd=ROOT))
        wait_for(self._answers, "the server to listen")

    def _answers(self) -> bool:
        with suppress(OSError), closing(socket.create_connection(("127.0.0.1", self.port), timeout=1)):
            return True
        return False

    def stop(self) -> None:
        """`kill -9` the process that serves HTTP."""
        for process in self.processes:
            process.kill()
            process.wait()

    def write(self, name: str, text: str = "") -> None:
        """Set a file of the folder."""
        (self.folder / name).write_text(text)

    def lines(self, name: str) -> list[str]:
        """Return the lines of a file of the folder."""
        path = self.folder / name
        return path.read_text().splitlines() if path.exists() else []

    def pids(self) -> list[int]:
        """Return the ids of all processes that were started."""
        return [int(line) for line in self.lines("started")]


def is_alive(pid: int) -> bool:
    """Check whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    stat = Path(f"/proc/{pid}/stat")
    return not stat.exists() or stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    """A server in a folder of its own; its HTTP is served only once a test starts it."""
    with closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    folder = tmp_path / "mcp"
    folder.mkdir()
    made = Served(folder=folder, port=port)
    try:
        yield made
    finally:
        made.stop()
