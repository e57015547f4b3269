"""The runs below a shown run that are active now, and whose text can be shown as it comes."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from perdure.wire.events import ChildEvent, MessageFinished, NodeFinished, NodeStarted, TextDelta, TreeEvent

from .. import display

_MOST_LINES: Final = 6


def label(path: Sequence[str]) -> str:
    """Return the name of a run below, as it stands before what the run does."""
    return display.short("/".join(path), 80)


@dataclass
class _ActiveRun:
    path: tuple[str, ...]
    doing: str = "starting"


@dataclass
class ActiveRuns:
    """The active runs below, kept by `feed`, which must get every event. Prints nothing."""

    active: dict[str, _ActiveRun] = field(default_factory=dict[str, _ActiveRun])
    """Active runs by id, in the order of their start."""
    streamed: dict[tuple[str, int], int] = field(default_factory=dict[tuple[str, int], int])
    """Characters of a step's text that were shown as they came, by run id and step."""

    def feed(self, event: TreeEvent) -> None:
        """Add a run that starts, and drop a run that ends."""
        path = event.path if isinstance(event, ChildEvent) else []
        inner = event.event if isinstance(event, ChildEvent) else event
        match inner:
            case NodeStarted() if inner.run_id is not None:
                self.active[inner.run_id] = _ActiveRun(path=(*path, inner.key))
            case NodeFinished() if inner.run_id is not None:
                self.active.pop(inner.run_id, None)
                # A long swarm would keep an entry for each step of each visit.
                self.streamed = {at: count for at, count in self.streamed.items() if at[0] != inner.run_id}
            case _:
                pass

    def set_doing(self, run_id: str, doing: str) -> None:
        """Note in words what the run does now."""
        if run_id in self.active:
            self.active[run_id].doing = doing

    def take_piece(self, event: ChildEvent, piece: TextDelta) -> bool:
        """Return whether to show the piece of text; if so, it counts as shown.

        Texts of several runs would mix, so only that of a run that is active alone is shown as it comes. A
        text of which a piece is missing is shown when it is finished.
        """
        at = (event.run_id, piece.step)
        if self._leaves() != [event.run_id] or piece.offset != self.streamed.get(at, 0):
            return False
        self.streamed[at] = piece.offset + len(piece.text)
        return True

    def was_streamed(self, event: ChildEvent, message: MessageFinished) -> bool:
        """Return whether all of the message was shown as it came."""
        return self.streamed.get((event.run_id, message.step), 0) >= len(message.text)

    def lines(self) -> list[str]:
        """Return a line for each of the first active runs that wait for no run below them."""
        leaves = self._leaves()
        runs = [self.active[run_id] for run_id in leaves[:_MOST_LINES]]
        lines = [f"{label(run.path)}: {run.doing}" for run in runs]
        return lines if len(leaves) <= _MOST_LINES else [*lines, f"and {len(leaves) - _MOST_LINES} more"]

    def _leaves(self) -> list[str]:
        # The id of a child is its parent's, a slash and a key.
        parents = {run_id.rpartition("/")[0] for run_id in self.active}
        return [run_id for run_id in self.active if run_id not in parents]
