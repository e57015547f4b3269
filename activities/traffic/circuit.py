"""Circuit breakers: a worker stops calling a model or tool that keeps failing, and probes it later.

Theory of operation. There is a circuit for each key: a model's name, or "tool:" and a tool's name.
A circuit is

- closed: all calls pass. `threshold` failures in a row open it.
- open: no call passes until `open_until`. Each opening in a row doubles the wait, up to `longest_wait`.
- half open: the wait is over. A single call, the probe, passes. Its success closes the circuit, its
  failure opens it again, and its release (a cancelled call) lets the next call be the probe.

A provider's own delay (`retry_after`) is apart from that: it blocks all calls until its deadline, is no
outage, and needs no probe afterwards. A forced call, which a person wants tried, may be an early probe.

Written here because the libraries admit every call when the wait is over, wait equally long each time, and
know no delay that a provider names.
"""

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Final, Literal

from perdure.delays import sensible_delay
from perdure.errors import RULES, ErrorKind

State = Literal["closed", "open", "half_open"]

_JITTER: Final = 0.25
"""Largest random part added to a wait: the workers of a fleet must not probe at the same moment."""


class CircuitOpen(Exception):
    """Refusal of a call that the circuit blocks."""

    def __init__(
        self, key: str, wait: timedelta, why: str, *, by_provider: bool, park_for: timedelta | None = None
    ) -> None:
        self.retry_after = wait
        self.park_for = park_for or wait
        """Delay for a run that parks instead of waiting here.

        While a probe is pending it is longer than `retry_after`: the wait that follows if the probe fails.
        """
        self.by_provider = by_provider
        """True if the provider named the delay: such a delay is waited for, and is no outage."""
        reason = "as the provider asks" if by_provider else f"it failed too often ({why})"
        super().__init__(f"{key} is blocked for another {wait.total_seconds():.0f} s: {reason}")


@dataclass(frozen=True, eq=False)
class Ticket:
    """Admission of a call, by which its result is recorded; compared by identity."""

    key: str


@dataclass
class Circuit:
    """State of the circuit of a model or tool. Times are by the process's monotonic clock."""

    failures: int = 0
    """Failures in a row."""
    openings: int = 0
    """Openings in a row; each doubles the wait."""
    open_until: float | None = None
    """End of the wait of an open circuit; None while it is closed."""
    retry_after_until: float = 0.0
    """Retry-after deadline of the provider. Not an outage; when it passes, all calls are admitted."""
    probe: Ticket | None = None
    """Pending probe."""
    forced_failure_at: float | None = None
    """Time of the last forced call that failed; it spaces the next forced call."""
    last_kind: str = ""
    """Kind of the last failure, for messages."""


@dataclass(eq=False)
class Circuits:
    """Circuits of a worker process, by key.

    A probe each `longest_wait` is a small price for being back soon after a long outage.
    """

    threshold: int = 5
    first_wait: timedelta = timedelta(seconds=15)
    longest_wait: timedelta = timedelta(minutes=1)
    longest_retry_after: timedelta = timedelta(minutes=10)
    """Bound of a delay that a provider names."""
    clock: Callable[[], float] = field(default=time.monotonic, repr=False)
    chance: Callable[[], float] = field(default=random.random, repr=False)
    on_open: Callable[[str], None] = field(default=lambda key: None, repr=False)
    """Callback for metrics, called with the key of each circuit that opens."""
    _circuits: dict[str, Circuit] = field(default_factory=dict[str, Circuit])

    def check(self, key: str, *, force_once: bool = False) -> None:
        """Check that a call may be made now.

        A forced call passes if no probe is running and none ran recently. A provider's own delay blocks
        it like any other call.

        Raises:
            CircuitOpen: the circuit blocks the call.

        """
        circuit = self._current(key)
        if circuit is None:
            return
        delay = circuit.retry_after_until - self.clock()
        if delay > 0:
            raise CircuitOpen(key, timedelta(seconds=delay), circuit.last_kind, by_provider=True)
        if circuit.open_until is None:
            return
        if circuit.probe is not None:
            # Its result comes soon, at a time that nobody knows. Half a wait is a fair guess.
            raise CircuitOpen(
                key,
                self.first_wait / 2,
                circuit.last_kind,
                by_provider=False,
                park_for=timedelta(seconds=self._next_wait(circuit)),
            )
        left = circuit.open_until - self.clock()
        if left > 0 and not (force_once and self._may_force(circuit)):
            raise CircuitOpen(key, timedelta(seconds=left), circuit.last_kind, by_provider=False)

    def admit(self, key: str, *, force_once: bool = False) -> Ticket:
        """Admit a call, as the probe if the circuit is not closed.

        Each ticket is handed back once: to `record_success`, `record_failure` or `release`.

        Raises:
            CircuitOpen: the circuit blocks the call.

        """
        self.check(key, force_once=force_once)
        ticket = Ticket(key)
        circuit = self._current(key)
        if circuit is not None and circuit.open_until is not None:
            circuit.probe = ticket
        return ticket

    def record_success(self, ticket: Ticket) -> None:
        """Close the circuit, unless it is open and the call was not its probe.

        Any other call may have begun before the outage. A provider's own delay stands.
        """
        circuit = self._circuits.get(ticket.key)
        if circuit is None or (circuit.open_until is not None and circuit.probe is not ticket):
            return
        if circuit.retry_after_until > self.clock():
            self._circuits[ticket.key] = _reset(circuit)
        else:
            del self._circuits[ticket.key]

    def release(self, ticket: Ticket) -> None:
        """Give the ticket back for a call that says nothing of the other side's health."""
        circuit = self._circuits.get(ticket.key)
        if circuit is not None and circuit.probe is ticket:
            circuit.probe = None

    def record_failure(self, ticket: Ticket, kind: ErrorKind, retry_after: timedelta | None = None) -> None:
        """Count the failure, if errors of its kind say anything of the other side's health."""
        if not RULES[kind].counts_for_circuit:
            return self.release(ticket)
        circuit = self._circuits.setdefault(ticket.key, Circuit())
        circuit.last_kind = kind
        was_probe = circuit.probe is ticket
        wanted = sensible_delay(retry_after)
        if wanted:
            delay = min(wanted, self.longest_retry_after).total_seconds()
            # Late answers name shorter delays. The longest holds.
            circuit.retry_after_until = max(circuit.retry_after_until, self.clock() + delay)
            if kind == "rate_limited":
                # The provider works, and says when to come back.
                return self.release(ticket)
        if was_probe and circuit.open_until is not None and self.clock() < circuit.open_until:
            # A forced call, before the wait was over. It must not make the wait longer for the others.
            circuit.forced_failure_at = self.clock()
            return self.release(ticket)
        circuit.failures += 1
        # An open circuit ignores the late failures of calls that began before it opened.
        if was_probe or (circuit.open_until is None and circuit.failures >= self.threshold):
            self._open(ticket.key, circuit)
        return None

    def states(self) -> Mapping[str, State]:
        """Return the state of each circuit that is not closed; one under a provider's delay is open."""
        now = self.clock()
        states: dict[str, State] = {}
        for key in list(self._circuits):
            circuit = self._current(key)
            if circuit is not None and (circuit.open_until is not None or circuit.retry_after_until > now):
                blocked_until = max(circuit.open_until or 0.0, circuit.retry_after_until)
                states[key] = "open" if blocked_until > now else "half_open"
        return states

    def _current(self, key: str) -> Circuit | None:
        """Return the circuit; one that nobody probed for `longest_wait` is closed first, as outdated."""
        circuit = self._circuits.get(key)
        if circuit is None or circuit.open_until is None or circuit.probe is not None:
            return circuit
        if self.clock() - circuit.open_until > self.longest_wait.total_seconds():
            self._circuits[key] = _reset(circuit)
        return self._circuits[key]

    def _may_force(self, circuit: Circuit) -> bool:
        # Hundreds of runs may be resumed at once. Their forced calls come half a wait apart.
        last = circuit.forced_failure_at
        return last is None or self.clock() - last >= self.first_wait.total_seconds() / 2

    def _next_wait(self, circuit: Circuit) -> float:
        """Return the wait, in seconds and before jitter, if the circuit opened now."""
        doubled: timedelta = self.first_wait * 2 ** min(circuit.openings, 16)
        return min(doubled, self.longest_wait).total_seconds()

    def _open(self, key: str, circuit: Circuit) -> None:
        wait = self._next_wait(circuit)
        circuit.openings += 1
        circuit.open_until = self.clock() + wait * (1 + _JITTER * self.chance())
        circuit.probe = None
        self.on_open(key)


def _reset(circuit: Circuit) -> Circuit:
    """Return the circuit closed, with its provider's delay kept."""
    return Circuit(retry_after_until=circuit.retry_after_until, last_kind=circuit.last_kind)
