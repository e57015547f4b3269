"""Context strategies: which part of a transcript the model gets to see."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class SlidingWindow(BaseModel):
    """The first message (the task) and the newest ones, whole, within both bounds.

    When a bound is passed, the window is cut to `keep` of it, not to the bound itself: each cut
    makes the provider read the conversation anew, so cuts should be rare.
    A tool call is never separated from its result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sliding_window"] = "sliding_window"
    messages: Annotated[int, Field(ge=4)] | None = None
    """Most messages the model sees; None is no bound."""
    tokens: Annotated[int, Field(ge=256)] | None = 150_000
    """Most tokens the model sees, by the provider's last count; None is no bound."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.6
