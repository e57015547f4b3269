"""Runs below the one that is shown: what each of them does, and whose text can be shown as it comes."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from perdure.wire.events import ChildEvent, MessageFinished, NodeFinished, NodeStarted, TextDelta, TreeEvent
from perdure.wire.ids import parent_id_of

from .. import display

_MOST = 6


def name_of(path: Sequence[str]) -> str:
    """What a run below is called in front of what it does."""
    return display.short("/".join(path), 80)


@dataclass
class _Working:
    path: tuple[str, ...]
    doing: str = "starting"


@dataclass
class ActiveRuns:
    """Those that work now. Feed it every event; it prints nothing."""

    working: dict[str, _Working] = field(default_factory=dict[str, _Working])
    shown: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    """Characters of a step's text that were shown as they came, by run and step."""

    def feed(self, event: TreeEvent) -> None:
        """Take in who begins and who ends."""
        path = event.path if isinstance(event, ChildEvent) else []
        inner = event.event if isinstance(event, ChildEvent) else event
        match inner:
            case NodeStarted() if inner.run_id is not None:
                self.working[inner.run_id] = _Working(path=(*path, inner.key))
            case NodeFinished() if inner.run_id is not None:
                self.working.pop(inner.run_id, None)
                self.shown = {at: told for at, told in self.shown.items() if at[0] != inner.run_id}
            case _:
                pass

    def does(self, run_id: str, words: str) -> None:
        """What the run does now, in words."""
        if run_id in self.working:
            self.working[run_id].doing = words

    def streams(self, event: ChildEvent, piece: TextDelta) -> bool:
        """Whether to show the piece: it is of the only one that works, and nothing before it is missing."""
        at = (event.run_id, piece.step)
        if self._leaves != [event.run_id] or piece.offset != self.shown.get(at, 0):
            return False
        self.shown[at] = piece.offset + len(piece.text)
        return True

    def was_shown(self, event: ChildEvent, message: MessageFinished) -> bool:
        """Whether the whole message was shown as it came."""
        return self.shown.get((event.run_id, message.step), 0) >= len(message.text)

    def lines(self) -> list[str]:
        """A line for each that works, of those that wait for nobody below."""
        leaves = self._leaves
        told = [f"{name_of(self.working[one].path)}: {self.working[one].doing}" for one in leaves[:_MOST]]
        return told if len(leaves) <= _MOST else [*told, f"and {len(leaves) - _MOST} more"]

    @property
    def _leaves(self) -> list[str]:
        above = {parent_id_of(run_id) for run_id in self.working}
        return [run_id for run_id in self.working if run_id not in above]
