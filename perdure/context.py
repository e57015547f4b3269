"""Context strategies, which choose the part of a transcript that the model sees."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field


class SlidingWindow(BaseModel):
    """Window of the first message, which is the task, and the newest messages within both bounds.

    A passed bound cuts the window to `keep` of the bound. Each cut invalidates the provider's prompt cache,
    so cuts should be rare. A tool call is never separated from its result.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["sliding_window"] = "sliding_window"
    # At least a task, a call, its result and an answer.
    messages: Annotated[int, Field(ge=4)] | None = None
    """Most messages that the model sees; None is no bound."""
    tokens: Annotated[int, Field(ge=256)] | None = 150_000
    """Most tokens that the model sees, by the provider's last count; None is no bound."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share of a passed bound that a cut leaves."""
