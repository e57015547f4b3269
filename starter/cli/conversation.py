"""Talking with an agent: a line a turn, from a terminal or a pipe."""

import asyncio
import contextlib
import re
import signal
import sys
import uuid
from collections.abc import AsyncIterator, Generator, Iterator
from typing import TYPE_CHECKING, Final

from rich.text import Text

from perdure.errors import InvalidRequest, PerdureError, RunEnded, RunNotFound
from perdure.wire.events import Event, Finished, StatusChanged
from perdure.wire.names import SESSION_WORKFLOW
from perdure.wire.results import TurnReply

from .. import display
from . import tables
from .follow import Follower, is_conversation
from .options import DONE, FAILED, Common, exit_code_of, hint, out, pretty, say, say_error
from .screen import Terminal

if TYPE_CHECKING:
    from perdure.messages import Message

    from ..client.connect import Client
    from ..client.listing import RunInfo
    from ..client.session import Session

_PROMPT: Final = "you> "
_RECENT: Final = 6
_HELP: Final = """\
/history     everything that was said
/status      where the session is, what it cost
/interrupt   end what the agent does now (Ctrl-C does, too)
/close       end the session
/quit        leave; the session stays (Ctrl-D does, too)"""


def new_id(agent: str, user: str | None) -> str:
    """An id that tells people whose session it is."""
    who = re.sub(r"[^\w.-]+", "-", user or "someone")
    return f"{agent}-{who}-{uuid.uuid4().hex[:4]}"


async def choose(client: "Client", agent: str | None, user: str | None) -> str:
    """The id of an open session of that person, as they choose it.

    Raises:
        RunNotFound: there is none.

    """
    query = f'WorkflowType = "{SESSION_WORKFLOW}" AND ExecutionStatus = "Running"'
    infos = [info async for info in client.list(agent=agent, user=user, query=query, most=20)]
    if not infos:
        raise RunNotFound(f"{user or 'nobody'} has no open session; begin one: perdure chat AGENT")
    if len(infos) == 1:
        return infos[0].id
    return _chosen(infos)


def _chosen(infos: "list[RunInfo]") -> str:
    for number, info in enumerate(infos, 1):
        say(f"{number:>3}  {info.id}  {info.status}, begun {display.age(info.started_at)}")
    sys.stderr.write("which? ")
    sys.stderr.flush()
    word = sys.stdin.readline().strip()
    if word.isdigit() and 1 <= int(word) <= len(infos):
        return infos[int(word) - 1].id
    raise InvalidRequest(f"{word!r} is none of them; or name it: perdure chat --session ID")


async def talk(client: "Client", session: "Session", common: Common) -> int:
    """Hold the conversation until its person leaves; the session stays."""
    if is_conversation(common):
        return await _Conversation(client, session).held()
    return await _piped(session, common)


async def _piped(session: "Session", common: Common) -> int:
    """A line a turn; replies on stdout."""
    code = DONE
    while line := sys.stdin.readline():
        if not line.strip():
            continue
        reply = await session.say(line.rstrip("\n"))
        out(common, reply.model_dump(mode="json"), tables.output(answer_of(reply)))
        if reply.error is not None:
            say_error(tables.failure_line(reply.error))
            code = FAILED
    return code


def answer_of(reply: TurnReply) -> object:
    """What a turn gave: its output, or the last words before it ended."""
    return reply.text if reply.output is None else reply.output


class _Conversation:
    def __init__(self, client: "Client", session: "Session") -> None:
        self._client = client
        self._session = session
        self._screen = Terminal()
        self._left = False

    async def held(self) -> int:
        """The exit code, when the person has left."""
        await self._pick_up()
        say(f"type /help for commands; leave with Ctrl-D and come back: {self._hint()}")
        while not self._left:
            line = _typed()
            if line is None:
                break
            try:
                await self._heard(line.strip())
            except RunEnded as error:
                self._screen.note(str(error))
                return DONE
            except PerdureError as error:
                self._screen.note(f"error: {error}")
                if not isinstance(error, InvalidRequest):
                    return exit_code_of(error)
        say(f"\nthe session stays; come back: {self._hint()}    (or end it: {self._end_hint()})")
        return DONE

    def _hint(self) -> str:
        return hint(f"chat --session {self._session.id}")

    def _end_hint(self) -> str:
        return hint(f"stop {self._session.id}")

    async def _pick_up(self) -> None:
        """Show what was said, and follow a turn that goes on."""
        try:
            status = await self._session.status()
        except RunNotFound:
            return
        said = await self._session.transcript()
        _remember(message.text for message in said if message.role == "user")
        self._show(said[-_RECENT:])
        if status.status != "idle":
            await self._follow(_rest_of_turn(self._session.run.events(after_message=status.messages)))

    def _show(self, messages: "list[Message]") -> None:
        parts = [part for message in messages for part in tables.message_parts(message)]
        pretty(*(Text.assemble((f"{head}\n", "bold"), f"{text}\n") for head, text in parts))

    async def _heard(self, line: str) -> None:
        match line:
            case "":
                return
            case "/help" | "/?":
                say(_HELP)
            case "/history":
                self._show(await self._session.transcript())
            case "/status":
                for name, value in tables.status_rows(self._session.id, await self._session.status()):
                    say(f"{name:<10} {value}")
            case "/interrupt":
                await self._session.interrupt()
            case "/close":
                await self._session.close()
                raise RunEnded(f"session {self._session.id!r} is closed")
            case "/quit" | "/exit":
                self._left = True
            case _ if line.startswith("/") and " " not in line:
                say(f"no command {line!r}; there are:\n{_HELP}")
            case _:
                await self._follow(self._session.stream(line))

    async def _follow(self, events: AsyncIterator[Event]) -> None:
        """Show a turn to its end. Ctrl-C interrupts it; a second one leaves."""
        follower = Follower(self._client, self._session.run, self._screen, asks=True, leave="")
        following = asyncio.ensure_future(follower.to_the_end(events))
        with _on_interrupt(lambda again: self._interrupt(following, again=again)):
            await asyncio.wait({following})
        self._screen.rest()
        if following.cancelled() or follower.detached:
            self._left = True
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
        following.add_done_callback(lambda _: task.cancel())


async def _rest_of_turn(events: AsyncIterator[Event]) -> AsyncIterator[Event]:
    async for event in events:
        yield event
        if isinstance(event, StatusChanged) and event.status == "idle":
            return


def _remember(lines: Iterator[str]) -> None:
    """Let the up arrow find what was said before."""
    with contextlib.suppress(ImportError):  # not every Python has it
        import readline

        for line in lines:
            if line and "\n" not in line:
                readline.add_history(line)


def _typed() -> str | None:
    """A line, edited as the terminal's user is used to; None at the end of them.

    Nothing else goes on meanwhile, so the loop may stand still; Ctrl-C forgets the line.
    """
    _remember(iter(()))
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return input(_PROMPT)
    except KeyboardInterrupt:
        say("\n(Ctrl-D leaves)")
        return ""
    except EOFError:
        return None
    finally:
        signal.signal(signal.SIGINT, handler)


@contextlib.contextmanager
def _on_interrupt(act: "_Act") -> Generator[None]:
    loop = asyncio.get_running_loop()
    pressed = 0

    def press() -> None:
        nonlocal pressed
        pressed += 1
        act(pressed > 1)

    loop.add_signal_handler(signal.SIGINT, press)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


if TYPE_CHECKING:
    from collections.abc import Callable

    _Act = Callable[[bool], None]
