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
"""A wait is this much longer or shorter, by chance: many workers must not come back as one."""


class CircuitOpen(Exception):
    """Nobody is to be asked for so long."""

    def __init__(self, key: str, wait: timedelta, why: str, *, asked_for: bool) -> None:
        self.retry_after = wait
        self.asked_for = asked_for
        """The provider itself named the time: then it is waited for, and not taken for an outage."""
        super().__init__(
            f"{key} is not asked for another {wait.total_seconds():.0f} s: it failed too often ({why})"
        )


@dataclass
class Circuit:
    """Of one model, or one tool."""

    key: str
    failures: int = 0
    """In a row."""
    openings: int = 0
    """In a row: each makes the wait twice as long."""
    until: float | None = None
    """Open until then, by the process's clock; None: closed."""
    probing: bool = False
    """Half open: one call is out to see."""
    asked_for: bool = False
    why: str = ""


@dataclass(eq=False)
class Circuits:
    """Those of a worker process.

    `threshold` failures in a row open one, for `first_wait`; then one call is let in. If it fails too, the
    wait is twice as long, up to `longest_wait`. A delay that a provider asks for opens it at once, for
    as long.
    """

    threshold: int = 5
    first_wait: timedelta = timedelta(seconds=15)
    longest_wait: timedelta = timedelta(minutes=2)
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    opened: Callable[[str], None] = field(default=lambda key: None, repr=False)
    """Told of each opening, for metrics."""
    _known: dict[str, Circuit] = field(default_factory=dict[str, Circuit])

    def check(self, key: str) -> None:
        """Whether a call may be made now.

        Raises:
            CircuitOpen: not now.

        """
        circuit = self._known.get(key)
        if circuit is None or circuit.until is None:
            return
        left = circuit.until - self.clock()
        if left > 0 or circuit.probing:
            least = 1.0 if circuit.asked_for else self.first_wait.total_seconds() / 2
            wait = self._about(max(left, least))
            raise CircuitOpen(key, wait, circuit.why, asked_for=circuit.asked_for)

    def enter(self, key: str) -> None:
        """Ask to make a call; `succeeded`, `failed` or `left` then says what became of it.

        Raises:
            CircuitOpen: not now.

        """
        self.check(key)
        circuit = self._known.get(key)
        if circuit is not None and circuit.until is not None:
            circuit.probing = True

    def succeeded(self, key: str) -> None:
        """It answers: whatever was, is over."""
        self._known.pop(key, None)

    def left(self, key: str) -> None:
        """The call ended without telling anything of the other side."""
        circuit = self._known.get(key)
        if circuit is not None:
            circuit.probing = False

    def failed(self, key: str, kind: ErrorKind, retry_after: timedelta | None = None) -> None:
        """The call failed; kinds that say nothing of the other side's health change nothing."""
        if not RULES[kind].trips:
            self.left(key)
            return
        circuit = self._known.setdefault(key, Circuit(key=key))
        circuit.failures += 1
        circuit.why = kind
        circuit.asked_for = retry_after is not None
        if retry_after is not None:
            self._open(circuit, retry_after)
        elif circuit.probing or (circuit.until is None and circuit.failures >= self.threshold):
            doubled = self.first_wait * 2 ** min(circuit.openings, 16)
            self._open(circuit, min(doubled, self.longest_wait))
        circuit.probing = False

    def states(self) -> Mapping[str, State]:
        """Those that are not closed."""
        now = self.clock()
        return {
            key: "open" if one.until > now else "half_open"
            for key, one in self._known.items()
            if one.until is not None
        }

    def _open(self, circuit: Circuit, wait: timedelta) -> None:
        circuit.openings += 1
        circuit.until = self.clock() + self._about(wait.total_seconds()).total_seconds()
        self.opened(circuit.key)

    def _about(self, seconds: float) -> timedelta:
        """At least so long: a provider's own delay is not cut short."""
        return timedelta(seconds=seconds * (1 + _JITTER * self.chance()))
