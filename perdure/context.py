"""Context strategies, which choose the part of a transcript that the model sees."""

from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from perdure.definitions import DefinitionModel


class _Bounds(DefinitionModel):
    """Bounds of what the model sees, and what a cut leaves of them."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    # At least a task, a call, its result and an answer.
    messages: Annotated[int, Field(ge=4)] | None = None
    """Most messages that the model sees; None is no bound."""
    tokens: Annotated[int, Field(ge=256)] | None = 150_000
    """Most tokens that the model sees, by the provider's last count; None is no bound."""
    keep: Annotated[float, Field(gt=0, lt=1)] = 0.6
    """Share that a cut leaves: of the messages, and of the tokens that instructions and tools leave for messages."""


class SlidingWindow(_Bounds):
    """Window of the newest messages within both bounds, and the request that the model works on.

    That request is the message with which the run, or the turn of a session, began. It stays visible, and so does
    what no model has read yet. A passed bound cuts the window to `keep` of the bound. Each cut invalidates the
    provider's prompt cache, so cuts should be rare. A tool call is never separated from its result.
    """

    kind: Literal["sliding_window"] = "sliding_window"
    read_back: bool = Field(default=False, exclude_if=lambda v: v is False)
    """True: the model gets the tool `read_back`, which reads what has left the window."""


class Summary(_Bounds):
    """Window as `SlidingWindow`, whose left-out messages a model summarizes before each cut.

    The model sees the summary from then on, behind the request that it works on. The next summary covers the
    earlier one. The summary costs a model call, which limits bound and the result counts. Without room for it, or
    when the call fails, the window slides without it. The tool `read_back` reads the messages themselves.
    """

    kind: Literal["summary"] = "summary"
    model: Annotated[str, Field(pattern=r"^[^:\s]+:\S+$")] | None = None
    """Model that writes the summary, as "provider:model"; None is the model in use."""
    instructions: str = ""
    """Further instructions for that model, such as what must not be lost."""
    budget_share: float = Field(default=0.25, gt=0, le=1, exclude_if=lambda v: v == 0.25)
    """Part of what is left of each bound on tokens and money that one summary may use. Without room for it in that
    part, the window slides without a summary."""
    read_back: bool = Field(default=True, exclude_if=lambda v: v is True)
    """False: the model does not get the tool `read_back`, which reads what has left the window."""


ContextStrategy = Annotated[SlidingWindow | Summary, Field(discriminator="kind")]
