"""Transcript of a run, and the part of it that the model sees."""

from dataclasses import dataclass

from perdure.messages import Message
from perdure.wire.results import PlanItem
from perdure.withheld import without_unsent


@dataclass(frozen=True, kw_only=True)
class Transcript:
    """Messages of a run, and the part of them that the model sees."""

    messages: tuple[Message, ...] = ()
    own_start: int = 0
    """Index of the first message that is the run's own: its parent gave it those before."""
    window_start: int = 0
    """Index of the first message in the window."""
    context_tokens: int = 0
    """Tokens that the next model call will read: the provider's last count, and our estimate since."""
    counted_by: str = ""
    """Model whose provider counted `context_tokens`; empty: the count is our own estimate."""
    spilled: bool = False
    """True once a result was cut: then the model gets the tool that reads the rest."""
    plan: tuple[PlanItem, ...] = ()
    summary: str = ""
    """Summary of the messages that have left the window, if the context strategy writes one."""
    refused: tuple[str, ...] = ()
    """Keys of attachments that a provider has refused: the model reads words in their place."""
    planned_at: int = 0
    """Index of the message with the newest plan. Once it has left the window, the model is reminded."""
    result_tokens: int = 0
    """Most tokens of the results of one step, as an overflow has shown; 0: the usual bound holds."""
    pinned: int | None = None
    """Index of the request that the model sees before the window. It changes only when the window moves."""

    unsent: tuple[int, ...] = ()
    """Indexes of messages that no request could bring: the model reads words in their place."""

    @property
    def shown(self) -> tuple[Message, ...]:
        """Messages as the model is shown them, in the window and outside."""
        return without_unsent(self.messages, self.unsent) if self.unsent else self.messages

    @property
    def visible(self) -> tuple[Message, ...]:
        """Messages that the model sees: the pinned request, if any, and the window."""
        shown = self.shown
        window = shown[self.window_start :]
        return window if self.pinned is None else (shown[self.pinned], *window)
