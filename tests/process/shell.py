"""Processes as a person starts them: `perdure ...`, and what they say."""

import asyncio
import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from perdure import connect
from perdure.errors import InvalidRequest
from tests.waiting import wait_for

_NOT_OURS = ("PERDURE_", "TEMPORAL_", "ANTHROPIC_", "OPENAI_", "AWS_")
"""Variables of whoever runs the tests that would change what they see."""


_AT_A_TERMINAL = """
import fcntl, os, sys, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Takes stdin for its controlling terminal, so that Ctrl-C is a signal, and becomes the command."""


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a command said, and how it ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """Stdout, as one JSON value."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """Stdout, as JSON lines."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass
class Background:
    """A command that goes on."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def said(self) -> str:
        """Stdout and stderr so far."""
        return self.log.read_text(encoding="utf-8", errors="replace")

    def says(self, text: str, *, times: int = 1, within: float = 60.0) -> None:
        """Wait until it has said that, so many times."""

        def said() -> bool:
            assert self.said.count(text) >= times or self.process.poll() is None, (
                f"ended without saying {text!r}: {self.said}"
            )
            return self.said.count(text) >= times

        wait_for(said, f"{text!r} in {self.log}", within=within)

    def interrupt(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, and wait for the end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    def end(self) -> None:
        """Whatever it does, it ends."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(timeout=10)
            except subprocess.TimeoutExpired:
                self.process.kill()
        self.process.wait()


@dataclass
class Terminal:
    """A command that takes itself to be at a terminal."""

    process: subprocess.Popen[bytes]
    descriptor: int
    said: str = ""
    _heard: int = 0

    def says(self, text: str, *, within: float = 60.0) -> None:
        """Read on until it says that, after what was heard before."""

        def said() -> bool:
            self._read()
            return text in self.said[self._heard :]

        wait_for(said, f"{text!r} in {self.said!r}", within=within)
        self._heard = self.said.index(text, self._heard) + len(text)

    def types(self, text: str) -> None:
        """Type it."""
        os.write(self.descriptor, text.encode())

    def ends(self, *, within: float = 60.0) -> int:
        """Wait for the end; the exit code."""

        def ended() -> bool:
            self._read()
            return self.process.poll() is not None

        wait_for(ended, f"the end of {self.said!r}", within=within)
        self._read()
        return self.process.wait()

    def _read(self) -> None:
        while select.select([self.descriptor], [], [], 0)[0]:
            try:
                new = os.read(self.descriptor, 65_536)
            except OSError:  # the other end is closed
                return
            self.said += new.decode(errors="replace")

    def close(self) -> None:
        """It ends, and the terminal with it."""
        self.process.kill()
        self.process.wait()
        os.close(self.descriptor)


@dataclass
class Shell:
    """A working directory with an environment, and commands in it."""

    folder: Path
    variables: Mapping[str, str] = field(default_factory=dict[str, str])
    started: list[Background] = field(default_factory=list[Background])

    @property
    def environment(self) -> dict[str, str]:
        """Of every command."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith(_NOT_OURS)}
        home = {"HOME": str(self.folder), "PERDURE_HOME": str(self.folder / "home")}
        return {**clean, **home, "COLUMNS": "200", "PYTHONWARNINGS": "default", **self.variables}

    def write(self, name: str, text: str) -> str:
        """A file in the folder."""
        (self.folder / name).write_text(text, encoding="utf-8")
        return name

    def perdure(self, *words: str, stdin: str = "", module: str = "perdure") -> Said:
        """`perdure WORDS`, to its end."""
        done = subprocess.run(
            [sys.executable, "-m", module, *words],
            cwd=self.folder,
            env=self.environment,
            input=stdin.encode(),
            capture_output=True,
            timeout=60,
            check=False,
        )
        return Said(code=done.returncode, out=done.stdout.decode(), err=done.stderr.decode())

    def start(self, *words: str) -> Background:
        """`perdure WORDS`, in the background."""
        log = self.folder / f"log-{len(self.started)}"
        with log.open("wb") as stream:
            process = subprocess.Popen(
                [sys.executable, "-m", "perdure", *words],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
        begun = Background(process=process, log=log)
        self.started.append(begun)
        return begun

    @contextlib.contextmanager
    def terminal(self, *words: str) -> Generator["Terminal", None, None]:
        """`perdure WORDS` at a terminal of its own."""
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [sys.executable, "-S", "-c", _AT_A_TERMINAL, sys.executable, "-m", "perdure", *words],
            cwd=self.folder,
            # No terminal emulator is there to answer where the cursor is.
            env={**self.environment, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        begun = Terminal(process=process, descriptor=ours)
        try:
            yield begun
        finally:
            begun.close()

    def start_run(self, agent: str, address: str, task_queue: str) -> str:
        """Start a run, without what a process costs; its id."""

        async def begin() -> str:
            client = await connect(address, task_queue=task_queue)
            return (await client.start(agent, "go")).id

        return asyncio.run(begin())

    def until_it_is(self, run: str, address: str, *statuses: str) -> None:
        """Wait until the run has one of the statuses."""

        async def look() -> str:
            with contextlib.suppress(InvalidRequest):  # no worker has begun with it yet
                return (await (await connect(address)).get(run).status()).status
            return ""

        wait_for(lambda: asyncio.run(look()) in statuses, f"{run} to be {statuses}")

    def close(self) -> None:
        """End what goes on."""
        for begun in self.started:
            begun.end()


AGENTS = '''
import pathlib
from datetime import timedelta

from perdure import Agent, ask_person, tool
from perdure.testing import ScriptedModel, calls, fails, says


@tool
async def order_status(order_id: str) -> str:
    """Where an order is now."""
    return f"{order_id} is on its way"


@tool(approval=True, effect="write")
async def refund(order_id: str, amount: float) -> str:
    """Pay an order back."""
    return f"paid back {amount} for {order_id}"


@tool(heartbeat=timedelta(seconds=2))
async def gate(path: str) -> str:
    """Stay until a file is there."""
    import asyncio

    while not pathlib.Path(path).exists():
        await asyncio.sleep(0.02)
    return "open"


def provider(request):
    return fails("authentication", "the key is wrong") if not pathlib.Path("key").exists() else says("mended")


support = Agent(name="support", model="support:x", tools=[order_status])
payer = Agent(name="payer", model="payer:x", tools=[refund])
twice = Agent(name="twice", model="twice:x", tools=[refund])
asker = Agent(name="asker", model="asker:x", tools=[ask_person])
locked = Agent(name="locked", model="locked:x")
broken = Agent(name="broken", model="broken:x", on_failure="fail")
slow = Agent(name="slow", model="slow:x", tools=[gate])
models = {
    "support": ScriptedModel(
        [says("One moment. ") + calls("order_status", order_id="1"), says("It is on its way.")]
    ),
    "payer": ScriptedModel([calls("refund", order_id="1", amount=12.5), says("Done.")]),
    "twice": ScriptedModel(
        [[calls("refund", order_id="1", amount=1), calls("refund", order_id="2", amount=2)], says("Done.")]
    ),
    "asker": ScriptedModel([calls("ask_person", question="Which order?"), says("Thanks.")]),
    "locked": ScriptedModel(provider),
    "broken": ScriptedModel([fails("bad_request", "no such thing")]),
    "slow": ScriptedModel([calls("gate", path="open"), says("Opened.")]),
}
'''
"""A file of agents that need no provider."""
