"""Circuits: a worker stops asking what fails, and asks again a little later, once.

Ours, because what there is lets everybody in at once when the wait is over, waits equally long each time,
and knows no provider that says itself when to come back.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal

from perdure.errors import RULES, ErrorKind

State = Literal["closed", "open", "half_open"]

_JITTER: Final = 0.25
"""A wait is up to this much longer, by chance: many workers must not come back as one."""


class CircuitOpen(Exception):
    """Nobody is to be asked for so long."""

    def __init__(
        self, key: str, wait: timedelta, why: str, *, by_provider: bool, park_for: timedelta | None = None
    ) -> None:
        self.retry_after = wait
        self.park_for = park_for or wait
        """When it is known again: later than it is worth another look, while a call is out to see."""
        self.by_provider = by_provider
        """The provider itself named the time: then it is waited for, and not taken for an outage."""
        said = "as the provider asks" if by_provider else f"it failed too often ({why})"
        super().__init__(f"{key} is not asked for another {wait.total_seconds():.0f} s: {said}")


@dataclass(frozen=True, eq=False)
class Ticket:
    """One call that was let in; what became of it is told with it."""

    key: str


@dataclass
class Circuit:
    """Of one model, or one tool."""

    failures: int = 0
    """In a row."""
    openings: int = 0
    """In a row: each makes the wait twice as long."""
    until: float | None = None
    """Open until then, by the process's clock; None: closed."""
    held_until: float = 0.0
    """The provider asked for peace until then. That is no outage: afterwards all are let in."""
    probe: Ticket | None = None
    """Half open: the call that is out to see."""
    insisted: float | None = None
    """When one that insisted was the last to fail: the next is not let in at once."""
    why: str = ""


@dataclass(eq=False)
class Circuits:
    """Those of a worker process.

    `threshold` failures in a row open one, for `first_wait`; then one call is let in. If it fails too, the
    wait is twice as long, up to `longest_wait`: one call each that long is a small price for being back
    soon after a long outage. A delay that a provider asks for holds all calls until
    then, at most `longest_hold`.
    """

    threshold: int = 5
    first_wait: timedelta = timedelta(seconds=15)
    longest_wait: timedelta = timedelta(minutes=1)
    longest_hold: timedelta = timedelta(minutes=10)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    on_open: Callable[[str], None] = field(default=lambda key: None, repr=False)
    """Told of each opening, for metrics."""
    _known: dict[str, Circuit] = field(default_factory=dict[str, Circuit])

    def check(self, key: str, *, force_once: bool = False) -> None:
        """Whether a call may be made now. One that is forced does not wait for an outage to be over: if
        nobody else is out to see, nor has just been, it is. A delay that the provider asked for holds it
        like any other.

        Raises:
            CircuitOpen: not now.

        """
        circuit = self._current(key)
        if circuit is None:
            return
        held = circuit.held_until - self.clock()
        if held > 0:
            raise CircuitOpen(key, timedelta(seconds=held), circuit.why, by_provider=True)
        if circuit.until is None:
            return
        soon = self.first_wait / 2
        if circuit.probe is not None:
            later = timedelta(seconds=self._wait(circuit))
            raise CircuitOpen(key, soon, circuit.why, by_provider=False, park_for=later)
        left = circuit.until - self.clock()
        if left > 0 and not (force_once and self._may_insist(circuit, soon)):
            raise CircuitOpen(key, timedelta(seconds=left), circuit.why, by_provider=False)

    def admit(self, key: str, *, force_once: bool = False) -> Ticket:
        """Ask to make a call; `succeeded`, `failed` or `left` then says what became of it.

        Raises:
            CircuitOpen: not now.

        """
        self.check(key, force_once=force_once)
        ticket = Ticket(key)
        circuit = self._current(key)
        if circuit is not None and circuit.until is not None:
            circuit.probe = ticket
        return ticket

    def record_success(self, ticket: Ticket) -> None:
        """It answers. Only the one that was let in to see closes an open circuit: any other may have begun
        before the trouble did. A delay that the provider asked for stands.
        """
        circuit = self._known.get(ticket.key)
        if circuit is None or (circuit.until is not None and circuit.probe is not ticket):
            return
        if circuit.held_until > self.clock():
            self._known[ticket.key] = Circuit(held_until=circuit.held_until, why=circuit.why)
        else:
            del self._known[ticket.key]

    def release(self, ticket: Ticket) -> None:
        """The call ended without telling anything of the other side."""
        circuit = self._known.get(ticket.key)
        if circuit is not None and circuit.probe is ticket:
            circuit.probe = None

    def record_failure(self, ticket: Ticket, kind: ErrorKind, retry_after: timedelta | None = None) -> None:
        """The call failed; kinds that say nothing of the other side's health change nothing."""
        if not RULES[kind].counts_for_circuit:
            return self.release(ticket)
        circuit = self._known.setdefault(ticket.key, Circuit())
        circuit.why = kind
        was_probe = circuit.probe is ticket
        if retry_after:
            hold = min(retry_after, self.longest_hold).total_seconds()
            circuit.held_until = max(circuit.held_until, self.clock() + hold)
            if kind == "rate_limited":  # it works, and says when
                return self.release(ticket)
        if was_probe and circuit.until is not None and self.clock() < circuit.until:
            # It insisted. Nobody else is to wait longer for it.
            circuit.insisted = self.clock()
            return self.release(ticket)
        circuit.failures += 1
        if was_probe or (circuit.until is None and circuit.failures >= self.threshold):
            self._open(ticket.key, circuit)
        return None

    def states(self) -> Mapping[str, State]:
        """Those that are not closed."""
        now = self.clock()
        found: dict[str, State] = {}
        for key in list(self._known):
            circuit = self._current(key)
            if circuit is not None and (circuit.until is not None or circuit.held_until > now):
                found[key] = "open" if max(circuit.until or 0.0, circuit.held_until) > now else "half_open"
        return found

    def _current(self, key: str) -> Circuit | None:
        """The circuit, unless nobody has asked for so long that what it knows is of no use any more."""
        circuit = self._known.get(key)
        if circuit is None or circuit.until is None or circuit.probe is not None:
            return circuit
        if self.clock() - circuit.until > self.longest_wait.total_seconds():
            self._known[key] = Circuit(held_until=circuit.held_until, why=circuit.why)
        return self._known[key]

    def _may_insist(self, circuit: Circuit, after: timedelta) -> bool:
        last = circuit.insisted
        return last is None or self.clock() - last >= after.total_seconds()

    def _wait(self, circuit: Circuit) -> float:
        """How long it will be open if it opens now, in seconds."""
        doubled: timedelta = self.first_wait * 2 ** min(circuit.openings, 16)
        return min(doubled, self.longest_wait).total_seconds()

    def _open(self, key: str, circuit: Circuit) -> None:
        wait = self._wait(circuit)
        circuit.openings += 1
        circuit.until = self.clock() + wait * (1 + _JITTER * self.chance())
        circuit.probe = None
        self.on_open(key)
