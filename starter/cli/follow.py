"""Following a run at a terminal or from a script: its events are shown, its questions put to the person.

Theory of operation
1. Events come in one stream. While nothing waits for the person, the next one is awaited alone.
2. While something waits and a person is there, the next event and the person's line are awaited together.
   Whichever comes first wins: an approval that is given elsewhere takes the question back.
3. An item waits until an event shows that it is resolved. The root of a tree hears of an approval below later
   than we hear of its end, so a resolved call is never asked about again.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Final, Literal

from perdure.errors import InvalidRequest, NotReachable, RunEnded, ServerBusy
from perdure.shown import visible
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
from .choice import chosen, label, menu
from .line import LineReader, line_reader, read_answer
from .options import DONE, EARLY, FAILED, PARKED, USAGE, Common, hint
from .person import user_name
from .screen import Json, Lines, Screen, Terminal

if TYPE_CHECKING:
    from ..client.connect import Client
    from ..client.run import Run

_SILENCE: Final = 10.0
"""Seconds without an event after which the worker is checked."""
_SOON: Final = 1.5
"""The same after a resume: a run that parks again at once changes its status to what it was."""

LOOK_AT_WORKER: Final = "look at the worker's own output"

Item = Approval | Question | Literal["parked"]
"""What waits for the person. "parked" is the followed run itself."""
_Place = tuple[str, str]
"""The run that waits and its call: call ids are unique within a run only."""


def screen_for(common: Common, run_id: str) -> Screen:
    """Return JSON where the options ask for it, a moving picture at a terminal, else lines."""
    if common.json:
        return Json()
    return Terminal() if sys.stdout.isatty() and sys.stderr.isatty() else Lines(run_id)


def has_person(common: Common) -> bool:
    """Return whether a person is there to answer."""
    return not common.json and all(s.isatty() for s in (sys.stdin, sys.stdout, sys.stderr))


async def follow(client: "Client", run: "Run", common: Common, *, leaves_unserved: bool = False) -> int:
    """Show the run to its end and return the exit code for that end.

    Ctrl-C and a person's "detach" leave the run as it is. Without a person, a parked run is left with the
    code for that, and an approval is waited for, since it may come from elsewhere. With `leaves_unserved`, a run
    whose agent no worker serves is left with the code of a parked one: its name may be mistyped.
    """
    screen = screen_for(common, run.id)
    follower = Follower(
        client,
        run,
        screen,
        asks=has_person(common),
        leave=detach_message(run.id),
        leaves_unserved=leaves_unserved,
    )
    try:
        return await follower.follow(run.events(tree=True))
    except asyncio.CancelledError:  # Ctrl-C: asyncio.run cancels us, and raises KeyboardInterrupt after
        screen.note(f"\n{detach_message(run.id)}")
        raise
    finally:
        screen.rest()


def detach_message(run_id: str) -> str:
    """Return how to come back to a run that is left."""
    watch, stop = hint(f"watch {run_id}"), hint(f"stop {run_id}")
    return f"the run goes on; follow it again: {watch}    (or end it: {stop})"


def end_code(end: Finished) -> int:
    """Return the exit code of a run that is over."""
    if end.status == "failed":
        # A wrong name or request is the caller's mistake, not the run's.
        wrong = end.error is not None and end.error.kind in (UNKNOWN_AGENT, INVALID_REQUEST)
        return USAGE if wrong else FAILED
    natural = end.status == "completed" and end.result is not None and end.result.stop_reason == "end_turn"
    return DONE if natural else EARLY


class Follower:
    """Shows the events of a run, or of a turn, and puts the agent's questions to the person.

    Args:
        client: for checks of the workers.
        run: the run, or session, that people act on.
        screen: where it is shown.
        asks: a person is there to answer.
        leave: the message for a person who leaves before the end.
        leaves_unserved: leave a run whose agent no worker serves, instead of waiting for such a worker.
        reader: reads the person's lines; a new one by default.

    """

    def __init__(
        self,
        client: "Client",
        run: "Run",
        screen: Screen,
        *,
        asks: bool,
        leave: str,
        leaves_unserved: bool = False,
        reader: LineReader | None = None,
    ) -> None:
        self._leaves_unserved = leaves_unserved
        self.detached = False
        self.last: TreeEvent | None = None
        self._leave = leave
        self._client = client
        self._run = run
        self._screen = screen
        self._asks = asks
        self._reader = reader
        self._waiting: dict[_Place, Item] = {}
        self._resolved: set[_Place] = set()
        self._listed: list[_Place] = []
        """Questions of which the person has last been told that they are open."""
        self._digests: dict[_Place, str] = {}
        """Digests of the approvals that were shown."""
        self._had_event = False
        self._explained: str | None = None
        """The explanation of the silence that was shown last; it is not repeated."""
        self._resumed = False
        """Resumed by the person, and no event since."""

    async def follow(self, stream: AsyncIterator[TreeEvent]) -> int:
        """Follow these events to their end and return the exit code."""
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
                    return end_code(event)
                if isinstance(event, TurnFinished):
                    return DONE
                if isinstance(event, StatusChanged) and self._leaves_at(event):
                    return PARKED

    def _leaves_at(self, event: StatusChanged) -> bool:
        """Tell how the run goes on, and return True, if it waits for what will not come while it is followed."""
        if _needs_person(event) and not self._asks:
            self._screen.note(f"  {tables.resume_hint(self._run.id)}")
            return True
        if self._leaves_unserved and is_unserved(event):
            self.detached = True
            self._screen.note(f"  {tables.unserved_hint(self._run.id)}")
            return True
        return False

    def _take(self, event: TreeEvent) -> None:
        """Show the event and update what waits for the person."""
        # An event proves that a worker took the run.
        self._had_event = True
        self.last = event
        self._screen.show(event)
        if isinstance(event, ChildEvent):
            return self._drop_resolved(event.run_id, event.event)
        match event:
            case ApprovalRequested():
                self._add(event.approval)
            case QuestionAsked():
                self._add(event.question)
            case StatusChanged():
                self._resumed = False
                self._waiting.pop(self._place("parked"), None)
                if event.status == "parked":
                    self._waiting[self._place("parked")] = "parked"
            case _:
                self._drop_resolved(self._run.id, event)
        return None

    def _add(self, item: Approval | Question) -> None:
        place = self._place(item)
        # A call whose stand-in waits is another approval.
        is_another = isinstance(item, Approval) and self._digests.get(place) not in (None, item.digest)
        if isinstance(item, Approval):
            self._digests[place] = item.digest
        if is_another or place not in self._resolved:
            self._waiting[place] = item

    def _drop_resolved(self, run_id: str, event: Event) -> None:
        """Forget what the event shows to be resolved, here or elsewhere."""
        match event:
            case ToolStarted() | ToolFinished():
                self._resolved.add((run_id, event.call_id))
                self._waiting.pop((run_id, event.call_id), None)
            case NodeFinished() if event.run_id is not None:
                # With slashes at the ends: r/a-1 is not above r/a-10.
                ended = [at for at in self._waiting if f"{at[0]}/".startswith(f"{event.run_id}/")]
                for place in ended:
                    del self._waiting[place]
            case _:
                pass

    def _place(self, item: Item) -> _Place:
        if isinstance(item, str):
            return self._run.id, ""
        return item.run_id or self._run.id, item.call_id

    async def _next(self, events: "_Events") -> TreeEvent | int | None:
        """Return the next event, or the exit code when the person detaches, or None after anything else."""
        coming = events.peek()
        if not (self._asks and self._waiting):
            done, _ = await asyncio.wait({coming}, timeout=_SOON if self._resumed else _SILENCE)
            return events.take() if done else await self._explain_silence()
        # In the order in which they were asked; the next one follows when this one is resolved.
        item = next(iter(self._waiting.values()))
        questions = self._questions
        self._screen.rest()
        if isinstance(item, Question):
            self._show_menu(questions)
        self._reader = self._reader or line_reader()
        prompt = question_text(item, several=len(questions) > 1)
        line = asyncio.ensure_future(read_answer(self._reader, prompt))
        try:
            await asyncio.wait({coming, line}, return_when=asyncio.FIRST_COMPLETED)
            if line.done():
                return await self._answer(item, line.result())
        finally:
            # Waited for: the terminal is the reader's until it has put it back.
            line.cancel()
            await asyncio.gather(line, return_exceptions=True)
        return events.take()

    @property
    def _questions(self) -> list[Question]:
        """Questions that wait, in the order in which they were asked."""
        return [item for item in self._waiting.values() if isinstance(item, Question)]

    def _show_menu(self, questions: list[Question]) -> None:
        """Show which questions are open, once for each set of them: the line must say which it answers."""
        shown, self._listed = self._listed, [self._place(question) for question in questions]
        if self._listed == shown:
            return
        if len(questions) > 1:
            self._screen.note(menu(questions))
        elif len(shown) > 1:
            self._screen.note(f"still open: {label(questions[0])}  {visible(questions[0].text)}")

    async def _answer(self, item: Item, line: str | None) -> int | None:
        """Act on the person's line; return the exit code when the person detaches."""
        text = (line or "").strip()
        word, _, reason = text.partition(" ")
        # Only the word: the reason and the answer are the person's own.
        word = word.lower()
        # To a question every word is an answer, so only an empty line detaches.
        detaches = not text if isinstance(item, Question) else word in ("d", "detach")
        if line is None or detaches:
            self.detached = True
            if self._leave:
                self._screen.note(self._leave)
            return DONE
        if isinstance(item, Question):
            choice = chosen(text, self._questions)
            if choice is None:
                self._listed = []  # shown again, with the numbers
                return None
            item, text = choice
        try:
            understood = await self._carry_out(item, text, word, reason.strip())
        except (InvalidRequest, RunEnded) as error:  # resolved elsewhere meanwhile
            self._screen.note(str(error))
            understood = True
        if understood:
            self._waiting.pop(self._place(item), None)
        return None

    async def _carry_out(self, item: Item, text: str, word: str, reason: str) -> bool:
        """Do what the person says; return False for a word that is not understood, to ask again."""
        match item, word:
            case "parked", "r" | "resume":
                await self._run.resume()
                self._resumed = True
            case "parked", "s" | "stop":
                await self._run.stop()
            case Question(), _:
                await self._run.send(text, call_id=item.call_id, run_id=self._child_id(item))
            case Approval(), "y" | "yes" | "n" | "no":
                answer = await self._run.resolve_approval(
                    item.call_id,
                    allow=word.startswith("y"),
                    by=user_name(),
                    reason=reason,
                    digest=item.digest,
                    run_id=self._child_id(item),
                )
                if answer.repeated:
                    self._screen.note(answer.words)
            case _:
                return False
        return True

    def _child_id(self, item: Approval | Question) -> str | None:
        """Return the run below that waits, or None when it is the followed run itself."""
        return item.run_id if item.run_id and item.run_id != self._run.id else None

    async def _explain_silence(self) -> Event | None:
        reason = await self._find_silence_reason()
        if reason is not None and reason != self._explained:
            self._screen.note(reason)
            self._explained = reason
        if self._resumed:
            # Parked again between two polls: the stream compares statuses, and sees no change.
            status = await self._run.status()
            if status.status == "parked":
                return StatusChanged(status="parked", doing=status.doing, failure=status.failure)
        return None

    async def _find_silence_reason(self) -> str | None:
        if not self._had_event and not await self._client.has_worker():
            return no_worker_message(self._client.task_queue)
        try:
            await self._run.status()
        except ServerBusy:
            # The server is busy: that says nothing of the worker.
            return None
        except NotReachable:
            return f"no worker answers; the run waits for one, and goes on then ({LOOK_AT_WORKER})"
        stuck = await self._run.is_stuck()
        return "the worker cannot go on with the run: its log says why" if stuck else None


def question_text(item: Item, *, several: bool = False) -> str:
    """Return the prompt that asks the person about the item. `several`: more than one question waits."""
    if item == "parked":
        return "[r]esume, [s]top or [d]etach? "
    if isinstance(item, Question) and several:
        return "number and answer (empty: detach): "
    if isinstance(item, Question):
        child = f" to {display.short('/'.join(item.path), 80)}" if item.path else ""
        return f"your answer{child} (empty: detach): "
    call = display.short("/".join([*item.path, item.call_id]), 80)
    return f"approve {call}? [y]es, [n]o and why, [d]etach: "


def no_worker_message(task_queue: str) -> str:
    """Return what to do when no worker polls the task queue."""
    return f"no worker takes work from task queue {task_queue!r}; start one: perdure worker FILE"


def _needs_person(event: StatusChanged) -> bool:
    """Return whether the run is parked until a person acts, rather than until its own retry."""
    return event.status == "parked" and (event.failure is None or event.failure.resumes_at is None)


def is_unserved(event: StatusChanged) -> bool:
    """Return whether the run cannot begin, because no worker of its queue serves its agent."""
    return event.failure is not None and event.failure.kind == UNKNOWN_AGENT


class _Events:
    """A stream whose next event can be awaited beside something else."""

    def __init__(self, events: AsyncIterator[TreeEvent]) -> None:
        self._events = events
        self._coming: asyncio.Task[TreeEvent] | None = None

    def peek(self) -> "asyncio.Task[TreeEvent]":
        """Return the task of the next event; it is the same one until the event is taken."""
        if self._coming is None:
            self._coming = asyncio.create_task(self._next())
        return self._coming

    async def _next(self) -> TreeEvent:
        return await anext(self._events)

    def take(self) -> TreeEvent:
        """Return the event that has come."""
        assert self._coming is not None
        event = self._coming.result()
        self._coming = None
        return event

    async def aclose(self) -> None:
        """Stop asking for events."""
        if self._coming is not None:
            self._coming.cancel()
            await asyncio.gather(self._coming, return_exceptions=True)
        if isinstance(self._events, AsyncGenerator):  # the watchers of the runs below end with it
            await self._events.aclose()
