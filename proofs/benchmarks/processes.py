"""Processes of a subject: start, command and measure them."""

import asyncio
import json
import os
import sys
import tempfile
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .kit import Job
from .kit.real import Real

ROOT = Path(__file__).resolve().parents[2]
_TICKS = os.sysconf("SC_CLK_TCK")
_READY_WITHIN = 60.0


class Failed(Exception):
    """Error or death of a subject; the message is the subject's."""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time of a process so far, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def memory_bytes(pid: int, *, peak: bool = False) -> int:
    """Return the resident memory of a process, now or at its peak."""
    name = "VmHWM" if peak else "VmRSS"
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    return 0


def reset_peak(pid: int) -> None:
    """Reset the peak of resident memory."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


@dataclass
class Process:
    """Worker or driver of a subject."""

    process: asyncio.subprocess.Process
    log: Path
    names: dict[str, str] = field(default_factory=dict[str, str])
    ready_at: float = 0.0
    """Time when the process became ready, in seconds since 1970."""
    commands: int = 0

    @property
    def pid(self) -> int:
        """Process id."""
        return self.process.pid

    async def read(self, within: float) -> dict[str, Any]:
        """Read the next message; skip lines that libraries print."""
        assert self.process.stdout is not None
        try:
            async with asyncio.timeout(within):
                while line := await self.process.stdout.readline():
                    if line.startswith(b"{"):
                        message: dict[str, Any] = json.loads(line)
                        return message
        except TimeoutError:
            raise Failed(f"no answer within {within:.0f} s") from None
        raise Failed(f"died: {self.last_words()}")

    async def begin(self) -> None:
        """Wait until the process is ready, or held."""
        message = await self.read(_READY_WITHIN)
        self.names, self.ready_at = message.get("names", {}), message.get("at", 0.0)

    async def write(self, line: str) -> None:
        """Answer a line to it."""
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        await self.process.stdin.drain()

    async def go(self) -> None:
        """Let a held worker begin, and wait until it polls."""
        await self.write("go")
        await self.begin()

    async def ask(self, do: str, jobs: Sequence[Job], within: float, **more: Any) -> dict[str, Any]:
        """Send a command to a driver, and return its answer; raise Failed with its error."""
        self.commands += 1
        number = self.commands
        command = {"n": number, "do": do, "jobs": [asdict(job) for job in jobs], **more}
        await self.write(json.dumps(command))
        while True:
            answer = await self.read(within)
            if answer["n"] == number:  # else an answer to a command that was given up
                break
        if "error" in answer:
            raise Failed(answer["error"])
        return answer

    def last_words(self) -> str:
        """Return the end of the process's standard error."""
        return self.log.read_text(errors="replace").strip()[-600:]


@asynccontextmanager
async def process(
    python: Path,
    subject: str,
    role: str,
    *,
    address: str,
    queue: str,
    folder: Path,
    cache: int = 1000,
    hold: bool = False,
    real: Real | None = None,
) -> AsyncGenerator[Process]:
    """Run a process of a subject; it is ready, or held, when the block begins."""
    words = [str(python), "-m", f"proofs.benchmarks.subjects.{subject}", role]
    words += ["--address", address, "--queue", queue, "--folder", str(folder), "--cache", str(cache)]
    words += ["--hold"] if hold else []
    with tempfile.NamedTemporaryFile("w+", suffix=f"-{subject}-{role}.log", delete=False) as log:
        started = await asyncio.create_subprocess_exec(
            *words,
            cwd=ROOT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=64 * 1024 * 1024,
            env=environment() | (real.environment if real else {}),
        )
    running = Process(started, Path(log.name))
    try:
        await running.begin()
        yield running
    finally:
        if started.returncode is None:
            started.terminate()
            try:
                await asyncio.wait_for(started.wait(), 20)
            except TimeoutError:
                started.kill()
                await started.wait()
        running.log.unlink(missing_ok=True)


def environment() -> dict[str, str]:
    """Return the environment of a process; it caches bytecode, but not beside the sources."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    bytecode = Path(tempfile.gettempdir()) / "perdure-bench-bytecode"
    return {**inherited, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": str(bytecode)}


def python_of(subject: str, venvs: Path) -> Path:
    """Return the interpreter of a subject's own virtual environment."""
    own = venvs / subject / "bin" / "python"
    return own if own.exists() else Path(sys.executable)
