"""What starters ask of a run: requests, messages, decisions. Plain JSON all of it.

Any Temporal client in any language can speak this. Names and shapes are contracts: a change adds
fields with defaults, it never renames.
"""

from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from perdure.limits import Limits
from perdure.messages import Part, Value


class _Strict(BaseModel):
    """What people write: an unknown field is a mistake, not an extension."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class RunRequest(_Strict):
    """The input of a run. `{"agent": "support", "prompt": "..."}` is enough."""

    agent: str = Field(min_length=1)
    prompt: str | list[Part]
    """Text, or parts: text, images, documents."""
    user: str | None = None
    """On whose behalf: told to tools, kept as a search attribute in plain text."""
    roles: list[str] = Field(default_factory=list[str])
    """What policies match their `role` against."""
    limits: Limits | None = None
    """Tightens the agent's own limits; it cannot widen them."""
    context: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Handed to tools as `ToolContext.context`; the model does not see it."""
    stream: bool = True
    """False: nobody will watch, so progress is reported just often enough to notice a dead worker."""

    def to_json(self) -> dict[str, Any]:
        """As JSON, with what was given and no more: a bound that was not set is not one of 50."""
        given = self.model_dump(mode="json", exclude_unset=True, exclude={"prompt"})
        return {**given, "prompt": self.model_dump(mode="json", include={"prompt"})["prompt"]}

    @field_validator("prompt", mode="before")
    @classmethod
    def _says_something(cls, prompt: Any) -> Any:
        if not isinstance(prompt, str | list):
            raise ValueError(f"must be text or a list of parts, not {type(prompt).__name__}")
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise ValueError("is empty: say what the agent is to do")
        return prompt  # pyright: ignore[reportUnknownVariableType]


MAX_IDLE: Final = timedelta(days=30)
"""How long a session waits for the next message, unless it is told otherwise."""


class SessionRequest(_Strict):
    """The input of a session. `{"agent": "support"}` is enough."""

    agent: str = Field(min_length=1)
    user: str | None = None
    roles: list[str] = Field(default_factory=list[str])
    context: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    stream: bool = True
    limits: Limits | None = None
    """Of each turn: tightens the agent's own."""
    session_limits: Limits | None = None
    """Of the whole session; only what is set bounds it. `timeout` is wall clock from its start."""
    max_idle: timedelta | None = Field(default=MAX_IDLE, gt=timedelta(), le=timedelta(days=3650))
    """The session closes when nothing was said for so long; None: never."""

    def to_json(self) -> dict[str, Any]:
        """As JSON, with what was given and no more."""
        return self.model_dump(mode="json", exclude_unset=True)


WhenBusy = Literal["queue", "steer"]
"""What becomes of a message that comes during a turn: a turn of its own afterwards, or part of this one."""


class SessionMessage(_Strict):
    """The argument of `say`: a message to a session."""

    id: str = Field(min_length=1, max_length=256)
    """The same id again is the same message: it is answered once."""
    text: str | list[Part]
    when_busy: WhenBusy = "queue"


class ApprovalDecision(_Strict):
    """The argument of `resolve_approval`: a person allows or denies a tool call that waits."""

    call_id: str
    allow: bool
    by: str = ""
    reason: str = ""
    arguments: dict[str, JsonValue] | None = None
    """With `allow`: call it with these instead."""
    digest: str | None = None
    """The approval's digest as the person saw it; refused when it is another by now."""
    run_id: str | None = None
    """Of the run in the tree that waits, when the call's id alone does not say which."""


class Redrive(_Strict):
    """The argument of `redrive`: how a parked run is to go on. Nothing given: as it is, like `resume`."""

    newest: bool = False
    """With its agent as its worker has it now, in place of the one it was started with."""
    model: str | None = Field(default=None, pattern=r"^[^:]+:.+$")
    """With this model first, as "provider:model"; its settings are those of the one before it."""
    limits: Limits | None = None
    """With these bounds in place of its own, of those that are set; not `timeout`, whose clock runs."""


class TranscriptQuery(Value):
    """Which part of a transcript is wanted: messages `start` to `stop`, as many as fit a page."""

    start: int = 0
    stop: int | None = None
