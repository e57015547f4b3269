"""Command line of the proof with MCP servers of others: `python -m proofs.mcp`, a line a check.

The servers are `server-everything` and `server-filesystem` of the protocol's authors, from npm, in the versions of the
Makefile. Each is called by an agent's run, over stdio and over HTTP, and killed in the midst of a call. The exit code
is 1 when a check fails.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final, Literal

from perdure import Agent, Client, McpServer, McpTool, McpToolInfo, Run, ToolRetry
from perdure.messages import Document, Image, ToolResult
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, running, says
from perdure.wire.events import ToolProgress

_PROGRAMS: Final = Path(__file__).with_name(".npm") / "node_modules" / ".bin"
_EVERYTHING, _FILES = str(_PROGRAMS / "mcp-server-everything"), str(_PROGRAMS / "mcp-server-filesystem")
_HANGS: Final = 120.0
_LONG: Final = "trigger-long-running-operation"
_RETRY: Final = ToolRetry(attempts=8, initial_interval=timedelta(milliseconds=500))

Check = Callable[[], Awaitable[None]]


@dataclass
class Stage:
    """Client, and the calls that each agent makes next."""

    client: Client
    lines: dict[str, list[Line]]

    async def call(self, agent: str, *lines: Line) -> list[ToolResult]:
        """Have the agent make these calls; return their results."""
        run = await self._start(agent, lines)
        await run.result()
        messages = await run.transcript()
        return [part for each in messages for part in each.parts if isinstance(part, ToolResult)]

    async def call_and_kill(self, agent: str, line: Line, kill: Callable[[], None]) -> ToolResult:
        """Have the agent make a call, and kill the server once it has reported progress."""
        run = await self._start(agent, [line])
        async for event in run.events():
            if isinstance(event, ToolProgress):
                kill()
                break
        await run.result()
        messages = await run.transcript()
        return next(part for each in messages for part in each.parts if isinstance(part, ToolResult))

    async def _start(self, agent: str, lines: Sequence[Line]) -> Run:
        self.lines[agent] = list(lines)
        return await self.client.start(agent, "go")


def main() -> None:
    """Make all checks, and print a line for each."""
    if not Path(_EVERYTHING).exists():
        sys.exit("the servers are not installed: make mcp-servers")
    logging.basicConfig(level=logging.CRITICAL)  # servers are killed by design
    with TemporaryDirectory() as folder:
        code = asyncio.run(_run(Path(os.path.realpath(folder))))
    sys.stdout.flush()
    os._exit(
        code
    )  # Python's normal exit crashes in some processes that used Temporal's SDK (sdk-python issue 300)


async def _run(folder: Path) -> int:
    faults = 0
    async with _staged(folder) as (stage, web):
        for name, check in _checks(stage, folder, web).items():
            began = time.monotonic()
            try:
                await asyncio.wait_for(check(), _HANGS)
                verdict = "right"
            except (AssertionError, TimeoutError) as error:
                faults += 1
                verdict = f"WRONG: {type(error).__name__}: {error}"
            print(f"{name:58}{time.monotonic() - began:7.1f} s  {verdict}", flush=True)
    return 1 if faults else 0


class Web:
    """Server that serves HTTP, as a process."""

    def __init__(self) -> None:
        with contextlib.closing(socket.socket()) as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        self._process = await asyncio.create_subprocess_exec(
            _EVERYTHING,
            "streamableHttp",
            env={**os.environ, "PORT": str(self.port)},
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.DEVNULL,
        )
        while True:
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            await asyncio.sleep(0.05)

    def kill(self) -> None:
        """`kill -9` it."""
        assert self._process is not None
        self._process.kill()

    async def revive(self) -> None:
        """Start it again as soon as it has been killed."""
        assert self._process is not None
        await self._process.wait()
        await self.start()


@contextlib.asynccontextmanager
async def _staged(folder: Path) -> AsyncGenerator[tuple[Stage, Web]]:
    web = Web()
    await web.start()
    reads: list[str | McpTool] = ["*", McpTool(_LONG, effect="read", retry=_RETRY)]
    address = f"http://127.0.0.1:{web.port}/mcp"
    servers = {
        "stdio_writer": McpServer(name="e", command=[_EVERYTHING, "stdio"]),
        "stdio_reader": McpServer(name="e", command=[_EVERYTHING, "stdio"], tools=reads, connections=2),
        "http_writer": McpServer(name="e", url=address),
        "http_reader": McpServer(name="e", url=address, tools=reads, connections=2),
        "files": McpServer(name="f", command=[_FILES, str(folder)], effect=_effect, retry=_RETRY),
    }
    agents = [Agent(name=name, model=f"scripted:{name}", tools=[server]) for name, server in servers.items()]
    lines: dict[str, list[Line]] = {}

    def script(request: ModelRequest) -> list[Line]:
        name = request.config.name.partition(":")[2]
        return lines[name] if request.step == 1 else [says("done")]

    try:
        async with running(agents=agents, models={"scripted": ScriptedModel(script)}) as client:
            yield Stage(client=client, lines=lines), web
    finally:
        web.kill()


def _effect(info: McpToolInfo) -> Literal["read", "write"]:
    return "read" if info.read_only else "write"


def _checks(stage: Stage, folder: Path, web: Web) -> dict[str, Check]:
    def kill_stdio() -> None:
        for pid in _own_servers("mcp-server-everything"):
            os.kill(pid, signal.SIGKILL)

    return {
        "everything, stdio: results of all kinds": lambda: _everything(stage, "stdio_writer"),
        "everything, HTTP: results of all kinds": lambda: _everything(stage, "http_writer"),
        "everything, stdio: killed in the midst of a write": lambda: _killed_write(
            stage, "stdio_writer", kill_stdio, None
        ),
        "everything, stdio: killed in the midst of a read": lambda: _killed_read(
            stage, "stdio_reader", kill_stdio, None
        ),
        "everything, HTTP: killed in the midst of a write": lambda: _killed_write(
            stage, "http_writer", web.kill, web.revive
        ),
        "everything, HTTP: killed in the midst of a read": lambda: _killed_read(
            stage, "http_reader", web.kill, web.revive
        ),
        "everything, HTTP: a session of before the kill is renewed": lambda: _echo(stage, "http_writer"),
        "filesystem: files are written and read": lambda: _files(stage, folder),
    }


async def _echo(stage: Stage, agent: str) -> None:
    [found] = await stage.call(agent, calls("e_echo", message="hello"))
    assert "hello" in found.text, found.text
    assert not found.is_error, found.text


async def _everything(stage: Stage, agent: str) -> None:
    total, structured, image, links, resource, wrong = await stage.call(
        agent,
        calls("e_get-sum", a=2, b=40),
        calls("e_get-structured-content", location="Chicago"),
        calls("e_get-tiny-image"),
        calls("e_get-resource-links", count=2),
        calls("e_get-resource-reference", resourceType="Text", resourceId=1),
        calls("e_get-sum", a="two", b=40),
    )
    assert "42" in total.text, total.text
    assert structured.text.count("temperature") == 1, structured.text
    assert any(isinstance(part, Image) for part in image.content), image
    assert links.text.count("(resource: ") == 2, links.text
    assert "demo://resource" in resource.text, resource.text
    assert wrong.is_error, wrong


async def _killed_write(
    stage: Stage, agent: str, kill: Callable[[], None], revive: Callable[[], Awaitable[None]] | None
) -> None:
    found = await stage.call_and_kill(agent, calls(f"e_{_LONG}", duration=60, steps=60), kill)
    if revive is not None:
        await revive()
    assert found.is_error, found
    assert found.may_have_effect, found
    assert found.attempts == 1, found
    await _echo(stage, agent)


async def _killed_read(
    stage: Stage, agent: str, kill: Callable[[], None], revive: Callable[[], Awaitable[None]] | None
) -> None:
    call = calls(f"e_{_LONG}", duration=4, steps=4)
    if revive is None:
        found = await stage.call_and_kill(agent, call, kill)
    else:
        killed = asyncio.Event()

        def kill_and_tell() -> None:
            kill()
            killed.set()

        async def revive_then() -> None:
            await killed.wait()
            await revive()

        found, _ = await asyncio.gather(stage.call_and_kill(agent, call, kill_and_tell), revive_then())
    assert not found.is_error, found
    assert found.attempts > 1, found


async def _files(stage: Stage, folder: Path) -> None:
    path, outside = str(folder / "note.txt"), "/etc/passwd"
    [written] = await stage.call("files", calls("f_write_file", path=path, content="a note\n"))
    assert not written.is_error, written.text
    assert (folder / "note.txt").read_text() == "a note\n"
    (folder / "tiny.pdf").write_bytes(b"%PDF-1.4\n%%EOF\n")
    read, listed, refused, media = await stage.call(
        "files",
        calls("f_read_text_file", path=path),
        calls("f_list_directory", path=str(folder)),
        calls("f_read_text_file", path=outside),
        calls("f_read_media_file", path=str(folder / "tiny.pdf")),
    )
    assert read.text.strip() == "a note", read.text
    assert "note.txt" in listed.text, listed.text
    assert refused.is_error, refused
    assert "denied" in refused.text, refused.text
    assert any(isinstance(part, Document) for part in media.content), media


def _own_servers(word: str) -> list[int]:
    """Return the servers of this process alone whose command holds the word: the children of its guards."""
    found: list[int] = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            command = (path / "cmdline").read_bytes().decode()
            if (
                word in command
                and "guard.py" not in command
                and _parent(_parent(int(path.name))) == os.getpid()
            ):
                found.append(int(path.name))
    return found


def _parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


if __name__ == "__main__":
    main()
