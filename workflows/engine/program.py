"""Program: what a run executes. An agent, a session, a swarm and a graph are programs; so is a pattern of one's own.

The loop in `workflows/loop.py` runs any of them: it carries out what `decide` returns and folds what happens.
`programs` holds the registry by kind.
"""

from datetime import datetime
from typing import Protocol, TypeVar

from perdure.messages import Message
from perdure.wire.requests import RunRequest
from perdure.wire.results import RunResult, RunStatus, StopReason
from perdure.wire.tree import Amount

from .commands import Command
from .events import Event
from .past import Extension
from .state import End, Origin, RunState

# Invariant: a program reads and returns its own kind of state, and never that of another.
S = TypeVar("S", bound=RunState)


class RunningProgram(Protocol[S]):
    """The part of a program that the loop uses while a run goes on. All of it is pure."""

    @property
    def state_type(self) -> type[S]:
        """Type of the state, which continue-as-new carries as JSON."""
        ...

    def restore(self, state: S) -> S:
        """Return the carried state with every part as a value."""
        ...

    def go_on(self, state: S, extension: Extension) -> S:
        """Return the closed run's state with its end taken back and the granted bounds in it."""
        ...

    def needs(self, state: S, reason: StopReason) -> list[str]:
        """Return each bound that still keeps the state from going on, with its least value.

        `reason`: the limit that had ended the run.
        """
        ...

    def fold(self, state: S, event: Event) -> S:
        """Return the state after the event."""
        ...

    def decide(self, state: S) -> Command:
        """Return the next command."""
        ...

    def status(self, state: S) -> RunStatus:
        """Return the status."""
        ...

    def result(self, state: S, end: End) -> RunResult:
        """Return the result, final or so far."""
        ...

    def details(self, state: S) -> str:
        """Return the page in the Temporal UI, as Markdown."""
        ...


class Program(RunningProgram[S], Protocol[S]):
    """A program that runs by itself, or turn by turn inside a session."""

    def initial(self, request: RunRequest, now: datetime, origin: Origin) -> S:
        """Return the state of a run that begins with the request's prompt."""
        ...

    def empty(self, request: RunRequest, now: datetime, origin: Origin) -> S:
        """Return the state before any prompt, for a session."""
        ...

    def begin_turn(self, state: S, message: Message) -> S:
        """Return the state with the message as the beginning of a turn."""
        ...

    def end_turn(self, state: S, end: End) -> S:
        """Return the state without what belonged to the turn alone."""
        ...

    def newest_words(self, state: S, end: End) -> tuple[str, int | None]:
        """Return the answer of the turn as text, and the index of the message that holds it, if there is one."""
        ...

    def least_turn(self, state: S) -> Amount:
        """Return the least amount with which another turn is worth beginning."""
        ...
