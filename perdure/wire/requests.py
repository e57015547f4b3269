"""Requests of a client: the input of a run, and the arguments of its updates and queries, as plain JSON.

Any Temporal client in any language can send them. Names and shapes are contracts: a change adds fields with
defaults and renames nothing.
"""

from datetime import timedelta
from typing import Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, field_validator

from perdure.limits import Limits
from perdure.messages import Part, Value


class _Strict(BaseModel):
    """Base of values that people write: an unknown field is a mistake, not an extension."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=False)


class RunRequest(_Strict):
    """The input of a run. `{"agent": "support", "prompt": "..."}` is enough."""

    agent: str = Field(min_length=1)
    prompt: str | list[Part]
    """Text, or parts: text, images, documents."""
    user: str | None = None
    """User on whose behalf the run acts. Tools get the name; it is a search attribute, in plain text."""
    roles: list[str] = Field(default_factory=list[str])
    """Roles that the `role` of a policy's rules is matched against."""
    # A request comes from outside; it must not lift a bound that the agent's author has set.
    limits: Limits | None = None
    """Tightens the agent's own limits; it cannot widen them."""
    context: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    """Values for tools, as `ToolContext.context`. The model does not see them. They are plain text in history, so
    clients refuse values that look like secrets."""
    stream: bool = True
    """False when nobody watches: progress is then reported just often enough to notice a dead worker."""

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON, without fields that were not set."""
        # A default must not be written: `limits.steps` left out is no bound, not the default bound of 50.
        fields = self.model_dump(mode="json", exclude_unset=True, exclude={"prompt"})
        # Parts of a prompt need their defaults: `kind` tells them apart.
        return {**fields, "prompt": self.model_dump(mode="json", include={"prompt"})["prompt"]}

    @field_validator("prompt", mode="before")
    @classmethod
    def _check_prompt(cls, prompt: Any) -> Any:
        if not isinstance(prompt, str | list):
            raise ValueError(f"must be text or a list of parts, not {type(prompt).__name__}")
        if not prompt or (isinstance(prompt, str) and not prompt.strip()):
            raise ValueError("is empty: say what the agent is to do")
        return prompt  # pyright: ignore[reportUnknownVariableType]


MAX_IDLE: Final = timedelta(days=30)
"""Time for which a session waits for the next message, unless its request sets another."""


WhenToUpgrade = Literal["never", "each_turn"]
"""Time at which a session takes the newest version of its agent by itself: with each message that is said, or never."""


class SessionRequest(_Strict):
    """The input of a session. `{"agent": "support"}` is enough."""

    agent: str = Field(min_length=1)
    user: str | None = None
    roles: list[str] = Field(default_factory=list[str])
    context: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    stream: bool = True
    limits: Limits | None = None
    """Bounds of each turn. They tighten the agent's own limits."""
    session_limits: Limits | None = None
    """Bounds of the whole session, without defaults. `timeout` is wall clock from its start."""
    upgrade: WhenToUpgrade = "never"
    max_idle: timedelta | None = Field(default=MAX_IDLE, gt=timedelta(), le=timedelta(days=3650))
    """Time without a message after which the session closes; None: it never does."""

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON, without fields that were not set."""
        # As for a run: a default must not be written as if the caller had set it.
        return self.model_dump(mode="json", exclude_unset=True)


WhenBusy = Literal["queue", "steer"]
"""Handling of a message that arrives during a turn: its own turn afterwards, or part of the current turn."""


class SessionMessage(_Strict):
    """Argument of `say`: a message to a session."""

    # Sessions keep the ids of answered messages in their state, so they are bounded.
    id: str = Field(min_length=1, max_length=256)
    """Id of the message. Sent again under the same id, it is still answered once."""
    text: str | list[Part]
    when_busy: WhenBusy = "queue"
    call_id: str | None = None
    """Question that it answers: the id of its call, or `RUN_ID/CALL`."""
    run_id: str | None = None
    """Run whose question it answers."""


class RunMessage(_Strict):
    """Argument of `send`, beside a bare text or list of parts: a message to a run, or an answer to a question."""

    text: str | list[Part]
    call_id: str | None = None
    """Question that it answers: the id of its call, or `RUN_ID/CALL`."""
    run_id: str | None = None
    """Run that it is for: this one, or one below it."""
    id: str | None = Field(default=None, min_length=1, max_length=256)
    """Id of the message; by default that of the update."""


class ApprovalDecision(_Strict):
    """Argument of `resolve_approval`: a person allows or denies a tool call that waits."""

    call_id: str
    """Id of the call, or `RUN_ID/CALL`."""
    allow: bool
    by: str = ""
    reason: str = ""
    arguments: dict[str, JsonValue] | None = None
    """With `allow`: arguments that replace those of the call."""
    digest: str | None = None
    """Digest of the approval as the person saw it. The decision is refused when it does not match. Needed for a
    call of a run below: call ids are unique within a run only."""
    run_id: str | None = None
    """Run in the tree whose call waits. The digest names it as well."""


class Redrive(_Strict):
    """Argument of `redrive`: changes with which a parked run goes on. Without any it acts as `resume`."""

    newest: bool = False
    """True: use the agent as the worker has it now, in place of the pinned spec."""
    model: str | None = Field(default=None, pattern=r"^[^:]+:.+$")
    """Model to try first, as "provider:model", with the settings of the model it precedes."""
    limits: Limits | None = None
    """Bounds that replace those of the same name. `timeout` cannot be replaced: its clock is running."""


class UpgradeRequest(_Strict):
    """Argument of `upgrade`: a session takes its agent as the workers have it now."""

    by: str = Field(default="", max_length=200)
    reason: str = Field(default="", max_length=2000)
    agent_version: str | None = Field(default=None, min_length=1)
    """Spec hash, or its beginning, that the newest agent must have. Otherwise the upgrade is refused."""


class ExtendTurn(_Strict):
    """Argument of `extend`: a turn of a session that a limit has ended goes on, with larger limits."""

    id: str = Field(min_length=1, max_length=256)
    """Id of the request, as of a message. Sent again under the same id, it has the same reply."""
    limits: dict[str, JsonValue]
    """Bounds of the turn that replace those of the same name. They are totals of the turn."""
    by: str = Field(default="", max_length=200)
    reason: str = Field(default="", max_length=2000)


class RunOrigin(_Strict):
    """Closed execution from which a run goes on."""

    workflow_id: str
    execution_id: str = Field(min_length=1)
    """Temporal's run id of the newest execution under that workflow id."""


class ExtendRequest(_Strict):
    """The input of a run that goes on from a closed one, under the same id.

    It names the origin and what is granted, never a state: a worker rebuilds that from the server's history.
    """

    origin: RunOrigin
    limits: dict[str, JsonValue]
    """Bounds that replace those of the same name. They are totals: what the run has used counts."""
    by: str = Field(default="", max_length=200)
    """Person or program that grants more."""
    reason: str = Field(default="", max_length=2000)
    user: str | None = None
    """With a value: the request is refused unless the run acts on behalf of this user."""

    def to_json(self) -> dict[str, Any]:
        """Return the request as JSON, without fields that were not set."""
        return self.model_dump(mode="json", exclude_unset=True)


class TranscriptQuery(Value):
    """Argument of `transcript`: messages `start` to `stop`, of which a page returns as many as fit."""

    start: int = 0
    stop: int | None = None
    summary: bool = Field(default=False, exclude_if=lambda v: v is False)
    """True: the page also holds the run's summary of what its model no longer sees."""
