"""Following a run at a terminal or from a script: shows its events, asks people what it asks them."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Final, Literal

from perdure.errors import InvalidRequest, NotReachable, RunEnded, ServerBusy
from perdure.wire.events import (
    ApprovalRequested,
    ChildEvent,
    Event,
    Finished,
    NodeFinished,
    QuestionAsked,
    StatusChanged,
    ToolFinished,
    ToolStarted,
    TreeEvent,
    TurnFinished,
)
from perdure.wire.names import INVALID_REQUEST, UNKNOWN_AGENT
from perdure.wire.results import Approval, Question

from .. import display
from . import tables
from .options import DONE, EARLY, FAILED, PARKED, USAGE, Common, hint
from .person import user_name
from .screen import Json, Lines, Screen, Terminal

if TYPE_CHECKING:
    from ..client.connect import Client
    from ..client.run import Run

_SILENCE: Final = 10.0
"""Seconds without a word after which we look whether anybody works at all."""

WHERE_TO_LOOK: Final = "look at the worker's own output"
_SOON: Final = 1.5

Want = Approval | Question | Literal["parked"]
_Place = tuple[str, str]
"""What tells one want from another: the run that waits, and its call. Call ids repeat from run to run."""


def screen_for(common: Common, run_id: str) -> Screen:
    """JSON when asked for; a moving picture only where somebody can see it move."""
    if common.json:
        return Json()
    return Terminal() if sys.stdout.isatty() and sys.stderr.isatty() else Lines(run_id)


def is_conversation(common: Common) -> bool:
    """Whether a person is there to answer."""
    return not common.json and all(s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr))


async def follow(client: "Client", run: "Run", common: Common) -> int:
    """Show the run to its end; the exit code says which end that was.

    Ctrl-C and a person's "detach" leave the run as it is. Where nobody can answer, a parked run is
    left with the code for that; approvals are waited for, for they may come from elsewhere.
    """
    screen = screen_for(common, run.id)
    follower = Follower(client, run, screen, asks=is_conversation(common), leave=detached(run.id))
    try:
        return await follower.to_the_end(run.events(tree=True))
    except asyncio.CancelledError:  # Ctrl-C: asyncio.run cancels us, and raises KeyboardInterrupt after
        screen.note(f"\n{detached(run.id)}")
        raise
    finally:
        screen.rest()


def detached(run_id: str) -> str:
    """How to come back to a run."""
    follow, end = hint(f"watch {run_id}"), hint(f"stop {run_id}")
    return f"the run goes on; follow it again: {follow}    (or end it: {end})"


def code_of_end(end: Finished) -> int:
    """The exit code of a run that is over."""
    if end.status == "failed":
        # The agent's name, or the request, was wrong: the call, not the run.
        wrong = end.error is not None and end.error.kind in (UNKNOWN_AGENT, INVALID_REQUEST)
        return USAGE if wrong else FAILED
    natural = end.status == "completed" and end.result is not None and end.result.stop_reason == "end_turn"
    return DONE if natural else EARLY


class Follower:
    """Shows events of a run, or of a turn, and asks the person what the agent asks.

    Args:
        client: for a look at the workers.
        run: the run, or session, that people act on.
        screen: where it is shown.
        asks: somebody is there to answer.
        leave: what to say to a person who leaves before the end.

    """

    def __init__(self, client: "Client", run: "Run", screen: Screen, *, asks: bool, leave: str) -> None:
        self.detached = False
        self.last: TreeEvent | None = None
        self._leave = leave
        self._client = client
        self._run = run
        self._screen = screen
        self._asks = asks
        self._wants: dict[_Place, Want] = {}
        self._decided: set[_Place] = set()
        self._silent = True
        self._told: str | None = None
        """What was said last about the silence."""
        self._resumed = False
        """Told to go on, and no word of it yet."""

    async def to_the_end(self, stream: AsyncIterator[TreeEvent]) -> int:
        """Follow these events to their end; the exit code."""
        async with contextlib.aclosing(_Events(stream)) as events:
            while True:
                try:
                    event = await self._next(events)
                except StopAsyncIteration:
                    return DONE
                if isinstance(event, int):
                    return event
                if event is None:
                    continue
                self._take(event)
                if isinstance(event, Finished):
                    return code_of_end(event)
                if isinstance(event, TurnFinished):
                    return DONE
                if isinstance(event, StatusChanged) and _stands_still(event) and not self._asks:
                    self._screen.note(f"  {tables.resume_hint(self._run.id)}")
                    return PARKED

    def _take(self, event: TreeEvent) -> None:
        self._silent = False
        self.last = event
        self._screen.show(event)
        if isinstance(event, ChildEvent):
            return self._took(event.run_id, event.event)
        match event:
            case ApprovalRequested():
                self._ask(event.approval)
            case QuestionAsked():
                self._ask(event.question)
            case StatusChanged():
                self._resumed = False
                self._wants.pop(self._place("parked"), None)
                if event.status == "parked":
                    self._wants[self._place("parked")] = "parked"
            case _:
                self._took(self._run.id, event)
        return None

    def _ask(self, want: Approval | Question) -> None:
        if self._place(want) not in self._decided:  # the root hears of it later than we of its end
            self._wants[self._place(want)] = want

    def _took(self, run_id: str, event: Event) -> None:
        """What an event of a run says about who waits for a person."""
        match event:
            case ToolStarted() | ToolFinished():  # decided, here or elsewhere
                self._decided.add((run_id, event.call_id))
                self._wants.pop((run_id, event.call_id), None)
            case NodeFinished() if event.run_id is not None:
                gone = [at for at in self._wants if f"{at[0]}/".startswith(f"{event.run_id}/")]
                for place in gone:
                    del self._wants[place]
            case _:
                pass

    def _place(self, want: Want) -> _Place:
        if isinstance(want, str):
            return self._run.id, ""
        return want.run_id or self._run.id, want.call_id

    async def _next(self, events: "_Events") -> TreeEvent | int | None:
        """The next event; or an exit code, when a person detaches; None after anything else."""
        coming = events.peek()
        if not (self._asks and self._wants):
            done, _ = await asyncio.wait({coming}, timeout=_SOON if self._resumed else _SILENCE)
            if done:
                return events.take()
            return await self._explain_silence()
        want = next(iter(self._wants.values()))
        self._screen.rest()
        prompt(self._question(want))
        line = asyncio.ensure_future(read_line())
        await asyncio.wait({coming, line}, return_when=asyncio.FIRST_COMPLETED)
        if line.done():
            return await self._answered(want, line.result())
        line.cancel()
        await asyncio.gather(line, return_exceptions=True)
        prompt("\n")
        return events.take()

    def _question(self, want: Want) -> str:
        if want == "parked":
            return "[r]esume, [s]top or [d]etach? "
        if isinstance(want, Question):
            whose = f" to {display.short('/'.join(want.path), 80)}" if want.path else ""
            return f"your answer{whose} (empty: detach): "
        call = display.short("/".join([*want.path, want.call_id]), 80)
        return f"approve {call}? [y]es, [n]o and why, [d]etach: "

    async def _answered(self, want: Want, line: str | None) -> int | None:
        word, _, rest = (line or "d").strip().partition(" ")
        asks_to_detach = line is None or word.lower() in ("d", "detach")
        if isinstance(want, Question):
            asks_to_detach = not (line or "").strip()
        if asks_to_detach:
            self.detached = True
            if self._leave:
                self._screen.note(self._leave)
            return DONE
        try:
            await self._carry_out(want, (line or "").strip(), word.lower(), rest.strip())
        except (InvalidRequest, RunEnded) as error:  # somebody else was faster
            self._screen.note(str(error))
            self._wants.pop(self._place(want), None)
        return None

    async def _carry_out(self, want: Want, line: str, word: str, rest: str) -> None:
        match want, word:
            case "parked", "r" | "resume":
                await self._run.resume()
                self._resumed = True
            case "parked", "s" | "stop":
                await self._run.stop()
            case Question(), _:
                await self._run.send(line, run_id=self._below(want))
            case Approval(), "y" | "yes" | "n" | "no":
                allow = word.startswith("y")
                below = self._below(want)
                await self._run.resolve_approval(
                    want.call_id, allow=allow, by=user_name(), reason=rest, digest=want.digest, run_id=below
                )
            case _:
                return  # not understood: asked again
        self._wants.pop(self._place(want), None)

    def _below(self, want: Approval | Question) -> str | None:
        """The run below that is meant; None: this one."""
        return want.run_id if want.run_id and want.run_id != self._run.id else None

    async def _explain_silence(self) -> Event | None:
        why = await self._why_silent()
        if why is not None and why != self._told:
            self._screen.note(why)
            self._told = why
        if self._resumed:
            # Parked again between two looks: nothing changed for those who only look.
            status = await self._run.status()
            if status.status == "parked":
                return StatusChanged(status="parked", doing=status.doing, failure=status.failure)
        return None

    async def _why_silent(self) -> str | None:
        if self._silent and not await self._client.has_worker():
            return no_worker_message(self._client.task_queue)
        try:
            await self._run.status()
        except ServerBusy:
            return None
        except NotReachable:
            return f"no worker answers; the run waits for one, and goes on then ({WHERE_TO_LOOK})"
        stuck = await self._run.is_stuck()
        return "the worker cannot go on with the run: its log says why" if stuck else None


def no_worker_message(task_queue: str) -> str:
    """Return what to do when no worker polls the task queue."""
    return f"no worker takes work from task queue {task_queue!r}; start one: perdure worker FILE"


def prompt(text: str) -> None:
    """Ask, without ending the line."""
    sys.stderr.write(text)
    sys.stderr.flush()


async def read_line() -> str | None:
    """A line from the terminal; None at its end.

    Without a thread: one that waits for a line cannot be called back, and would hold up Ctrl-C.
    """
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    number = sys.stdin.fileno()
    loop.add_reader(number, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(number)
    return sys.stdin.readline() or None


class _Events:
    """Events of which the next can be waited for beside something else."""

    def __init__(self, events: AsyncIterator[TreeEvent]) -> None:
        self._events = events
        self._coming: asyncio.Task[TreeEvent] | None = None

    def peek(self) -> "asyncio.Task[TreeEvent]":
        """The next event, in a while; the same until it is taken."""
        if self._coming is None:
            self._coming = asyncio.create_task(self._next())
        return self._coming

    async def _next(self) -> TreeEvent:
        return await anext(self._events)

    def take(self) -> TreeEvent:
        """The event that has come."""
        assert self._coming is not None
        event = self._coming.result()
        self._coming = None
        return event

    async def aclose(self) -> None:
        """Stop asking."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        if isinstance(self._events, AsyncGenerator):  # what watches the runs below ends with it
            await self._events.aclose()


def _stands_still(event: StatusChanged) -> bool:
    """Whether nothing happens until a person does something: a parked run may try again by itself."""
    return event.status == "parked" and (event.failure is None or event.failure.resumes_at is None)
