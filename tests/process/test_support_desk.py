"""The demo of the support desk, run as people run it."""

import asyncio
import contextlib
import os
import re
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from perdure import connect

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "examples" / "support_desk" / "demo.py"


class Performance:
    """The demo in a process of its own, and what it has said so far."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.said = ""

    async def says(self, text: str) -> str:
        """Read on until a line with that text; returns the line."""
        assert self.process.stdout is not None
        async for line in self.process.stdout:
            self.said += line.decode()
            if text in line.decode():
                return line.decode()
        raise AssertionError(f"never said {text!r}:\n{self.said}")

    async def ends(self) -> int:
        assert self.process.stdout is not None
        self.said += (await self.process.stdout.read()).decode()
        return await self.process.wait()

    @property
    def survivors(self) -> list[int]:
        """Servers and workers it named and left behind."""
        return [pid for pid in map(int, re.findall(r"\bpid (\d+)", self.said)) if _is_alive(pid)]


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@contextlib.asynccontextmanager
async def performing(tmp_path: Path, *options: str) -> AsyncGenerator[Performance, None]:
    """The demo, ended with the block; one that hangs fails its test instead of holding it."""
    ours = ("PERDURE_", "TEMPORAL_", "SUPPORT_DESK_", "ANTHROPIC_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(DEMO), "--free-ports", *options),
        cwd=ROOT,
        env={**environment, "TMPDIR": str(tmp_path)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(120):
            yield Performance(process)
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


def left_in(folder: Path) -> list[Path]:
    return list(folder.iterdir())


@pytest.mark.slow
async def test_demo_proves_claims_and_cleans_up(tmp_path: Path) -> None:
    """The demo proves its claims and leaves nothing behind."""
    async with performing(tmp_path) as demo:
        assert await demo.ends() == 0, demo.said
    for line in (
        "Model: scripted:support-desk (SCRIPTED: ANTHROPIC_API_KEY is not set)",
        "ok  the note, written before, was not even tried again",
        "ok  the tracking, cut in the middle, was begun again from the start: it only reads",
        "ok  refund-approval waits, and nothing else",
        "ok  and made once: one row in the refunds table",
        "simulated cost",
        "/namespaces/default/workflows/refund-approval",
        "claims were checked, by the shop's database and Temporal's history.",
    ):
        assert line in demo.said, demo.said
    assert len(re.findall(r"!!  kill -9 \d+", demo.said)) == 2
    assert demo.survivors == []
    assert left_in(tmp_path) == []


@pytest.mark.slow
async def test_demo_waits_for_approval(tmp_path: Path) -> None:
    """A demo that waits at the approval goes on by the person's decision."""
    async with performing(tmp_path, "--pause-at", "approval") as demo:
        address = (await demo.says("server 127.0.0.1:")).split()[1].rstrip(",")
        await demo.says("Held here until somebody decides")
        run = (await connect(address)).get("refund-approval")
        await run.resolve_approval(
            (await run.status()).waiting[0].call_id, allow=False, by="ann", reason="too late"
        )
        assert await demo.ends() == 0, demo.said
    assert "ok  the refund was refused, and none was made" in demo.said
    assert demo.survivors == []


async def test_stopped_demo_stops_its_processes(tmp_path: Path) -> None:
    """A stopped demo stops its server and its worker."""
    async with performing(tmp_path) as demo:
        await demo.says("calls     find_customer")
        demo.process.terminate()
        assert await demo.ends() == 130, demo.said
    assert demo.survivors == []
    assert left_in(tmp_path) == []
