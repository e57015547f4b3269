"""Talking with an agent: a line a turn, from a terminal or a pipe."""

import asyncio
import contextlib
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Callable, Generator
from typing import TYPE_CHECKING, Final

from rich.text import Text

from perdure.errors import InvalidRequest, PerdureError, RunEnded, RunNotFound
from perdure.wire.events import Event, Finished, QuestionAsked, StatusChanged, TurnFinished
from perdure.wire.results import TurnReply

from .. import display
from ..client.waiting import waiting_questions
from . import tables
from .choice import chosen, menu
from .follow import Follower, has_person, is_unserved
from .line import LineInterrupted, line_reader
from .options import DONE, EARLY, FAILED, PARKED, Common, exit_code_of, hint, out, pretty, say, say_error
from .screen import Terminal

if TYPE_CHECKING:
    from perdure.messages import Message

    from ..client.connect import Client
    from ..client.listing import RunInfo
    from ..client.session import Session

_PROMPT: Final = "you> "
_RECENT: Final = 6
"""Messages of an old session that are shown when it is picked up."""
_HELP: Final = """\
/history     show all messages
/status      show where the session is and what it cost
/interrupt   end the turn in hand (Ctrl-C does, too)
/close       end the session
/quit        leave; the session stays (Ctrl-D does, too)"""


def new_session_id(agent: str, user: str | None) -> str:
    """Return an id that tells people whose session it is."""
    # Slashes part the ids of runs below, and spaces would need quotes in a shell.
    owner = re.sub(r"[^\w.-]+", "-", user or "someone")
    return f"{agent}-{owner}-{uuid.uuid4().hex[:4]}"


async def choose_session(client: "Client", agent: str | None, user: str | None) -> str:
    """Return the id of an open session of that user; of several the one that the person chooses.

    Raises:
        RunNotFound: there is no open session.
        InvalidRequest: the person chose none of them.

    """
    infos = [info async for info in client.open_sessions(agent=agent, user=user, most=20)]
    if not infos:
        raise RunNotFound(f"{user or 'nobody'} has no open session; begin one: perdure chat AGENT")
    return infos[0].id if len(infos) == 1 else await _ask_which(infos)


async def _ask_which(infos: "list[RunInfo]") -> str:
    for number, info in enumerate(infos, 1):
        say(f"{number:>3}  {info.id}  {info.status}, begun {display.age(info.started_at)}")
    try:
        line = await line_reader().read("which? ")
    except LineInterrupted:
        raise KeyboardInterrupt from None
    word = (line or "").strip()
    if word.isdigit() and 1 <= int(word) <= len(infos):
        return infos[int(word) - 1].id
    raise InvalidRequest(f"{word!r} is none of these numbers; or give its id: perdure chat --session ID")


async def converse(client: "Client", session: "Session", common: Common) -> int:
    """Hold the conversation until the person leaves, and return the exit code; the session stays."""
    if has_person(common):
        return await _Conversation(client, session).hold()
    return await _answer_lines(session, common)


async def _answer_lines(session: "Session", common: Common) -> int:
    """Take each line of stdin as a turn, or as the answer to its question, and print the turns' replies."""
    code = DONE
    while (line := _next_line()) is not None:
        try:
            reply = await _reply_to_line(session, line)
        except _UnservedError as unserved:
            say_error(unserved.words)
            say(f"  {tables.unserved_hint(session.id)}")
            return PARKED
        if reply is None:
            say_error(f"the turn waits for an answer; go on with: {hint(f'chat --session {session.id}')}")
            return EARLY
        out(common, reply.model_dump(mode="json"), tables.output(reply_output(reply)))
        if reply.error is not None:
            say_error(tables.failure_line(reply.error))
            code = FAILED
    return code


class _UnservedError(Exception):
    """No worker serves the session's agent: the turn is left."""

    def __init__(self, event: StatusChanged) -> None:
        self.words = event.failure.message if event.failure else event.doing
        super().__init__(self.words)


def _next_line() -> str | None:
    """Return the next line of stdin with something in it, or None at its end."""
    while line := sys.stdin.readline():
        if line.strip():
            return line.rstrip("\n")
    return None


async def _reply_to_line(session: "Session", line: str) -> TurnReply | None:
    """Return the reply to the line; None when a question of its turn waits, and no line is left to answer it."""
    reply = None
    async for event in session.stream(line):
        if isinstance(event, TurnFinished):
            reply = event.reply  # the last event
        if isinstance(event, StatusChanged) and is_unserved(event):
            raise _UnservedError(event)
        if isinstance(event, QuestionAsked) and not await _answer_questions(session):
            break
    return reply


async def _answer_questions(session: "Session") -> bool:
    """Answer every question that waits by a line of stdin; return False when there are no more lines."""
    while questions := waiting_questions(await session.status()):
        several = len(questions) > 1
        say(menu(questions) if several else f"the agent asks: {tables.waiting_item(questions[0])}")
        line = _next_line()
        if line is None:
            return False
        choice = chosen(line, questions)
        if choice is None:
            continue  # asked again, with the numbers
        try:
            await session.run.send(choice[1], call_id=choice[0])
        except InvalidRequest as error:  # answered elsewhere meanwhile
            say_error(str(error))
    return True


def reply_output(reply: TurnReply) -> object:
    """Return the output of a turn; of a turn that ended early, its last text."""
    return reply.text if reply.output is None else reply.output


class _Conversation:
    def __init__(self, client: "Client", session: "Session") -> None:
        self._client = client
        self._session = session
        self._screen = Terminal()
        self._reader = line_reader()
        self._has_left = False
        self._code = DONE

    async def hold(self) -> int:
        """Take lines until the person has left, and return the exit code."""
        await self._pick_up()
        say(f"type /help for commands; leave with Ctrl-D and come back: {self._return_hint()}")
        while not self._has_left:
            try:
                line = await self._reader.read(_PROMPT)
            except LineInterrupted:
                say("(Ctrl-D leaves)")
                continue
            if line is None:
                break
            try:
                await self._take(line.strip())
            except RunEnded as error:
                # Closed, by `/close` or elsewhere: there is no session to come back to.
                self._screen.note(str(error))
                return DONE
            except PerdureError as error:
                self._screen.note(f"error: {error}")
                # After a wrong line the person tries another; no other error goes away by that.
                if not isinstance(error, InvalidRequest):
                    return exit_code_of(error)
        end = hint(f"stop {self._session.id}")
        say(f"\nthe session stays; come back: {self._return_hint()}    (or end it: {end})")
        return self._code

    def _return_hint(self) -> str:
        return hint(f"chat --session {self._session.id}")

    async def _pick_up(self) -> None:
        """Show the newest messages, and follow a turn that goes on."""
        try:
            status = await self._session.status()
        except RunNotFound:
            # A new session: its first message starts it.
            return
        messages = await self._session.transcript()
        typed = (message.text for message in messages if message.role == "user")
        # The line editor shows one line; a text of several was not typed here.
        self._reader.remember(text for text in typed if text and "\n" not in text)
        self._print(messages[-_RECENT:])
        if status.status != "idle":
            await self._follow(_until_idle(self._session.run.events(after_message=status.messages)))

    def _print(self, messages: "list[Message]") -> None:
        parts = [part for message in messages for part in tables.message_parts(message)]
        pretty(*(Text.assemble((f"{head}\n", "bold"), f"{text}\n") for head, text in parts))

    async def _take(self, line: str) -> None:
        """Carry out a command, or take the line as a message.

        Raises:
            RunEnded: the session is over.

        """
        match line:
            case "":
                return
            case "/help" | "/?":
                say(_HELP)
            case "/history":
                self._print(await self._session.transcript())
            case "/status":
                for name, value in tables.status_rows(self._session.id, await self._session.status()):
                    say(f"{name:<10} {value}")
            case "/interrupt":
                await self._session.interrupt()
            case "/close":
                await self._session.close()
                raise RunEnded(f"session {self._session.id!r} is closed")
            case "/quit" | "/exit":
                self._has_left = True
            # One word: a path at the beginning of a sentence is no command.
            case _ if line.startswith("/") and " " not in line:
                say(f"no command {line!r}; the commands are:\n{_HELP}")
            case _:
                await self._follow(self._session.stream(line))

    async def _follow(self, events: AsyncIterator[Event]) -> None:
        """Show a turn to its end. Ctrl-C interrupts it; a second one leaves.

        Raises:
            RunEnded: the session ended with the turn.

        """
        follower = Follower(
            self._client,
            self._session.run,
            self._screen,
            asks=True,
            leave="",
            leaves_unserved=True,
            reader=self._reader,
        )
        following = asyncio.ensure_future(follower.follow(events))
        with _on_interrupt(lambda again: self._interrupt(following, again=again)):
            # Not awaited: after the second Ctrl-C it is cancelled, which is no error here.
            await asyncio.wait({following})
        self._screen.rest()
        if following.cancelled() or follower.detached:
            self._has_left = True
            if not following.cancelled():
                self._code = following.result()
            return
        following.result()
        if isinstance(follower.last, Finished):
            raise RunEnded(f"session {self._session.id!r} is over")

    def _interrupt(self, following: "asyncio.Future[int]", *, again: bool) -> None:
        if again:
            following.cancel()
            return
        self._screen.note("\ninterrupting; Ctrl-C again leaves")
        task = asyncio.ensure_future(self._session.interrupt())
        # The callback holds the task: the loop alone would let it be collected.
        following.add_done_callback(lambda _: task.cancel())


async def _until_idle(events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    async for event in events:
        yield event
        if isinstance(event, StatusChanged) and event.status == "idle":
            return


@contextlib.contextmanager
def _on_interrupt(act: Callable[[bool], None]) -> Generator[None]:
    """Call `act` at Ctrl-C, with True from the second time on."""
    loop = asyncio.get_running_loop()
    presses = 0

    def press() -> None:
        nonlocal presses
        presses += 1
        act(presses > 1)

    # asyncio's own handler, by which Ctrl-C ends the command, comes back afterwards.
    previous = signal.getsignal(signal.SIGINT)
    loop.add_signal_handler(signal.SIGINT, press)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, previous)
