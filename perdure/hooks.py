"""Hooks: your code beside a run's calls. A hook may look at a call, change it, refuse it, or ask a person.

    class NoRefundsAtNight(Hook):
        async def before_tool(self, call: HookedCall) -> Verdict | None:
            if call.tool == "refund" and is_night():
                return Ask(reason="a refund outside office hours")

    support = Agent(name="support", hooks=[NoRefundsAtNight()], ...)

Hooks run on the worker, in the activity of the call: any I/O is allowed. A verdict is recorded in history with the
call, so a replay never asks a hook again, and a retry asks only when the verdict was lost with its worker. An agent
without hooks has no activity, event or byte more.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Literal, get_args

from pydantic import JsonValue

from perdure.messages import HookRecord, Message, ToolCall, ToolResult, Value

if TYPE_CHECKING:
    from perdure.model import ModelRequest

HookPoint = Literal["on_start", "before_model", "after_model", "before_tool", "after_tool", "on_end"]
"""Points of a run, or of a session's turn, at which hooks are asked."""
__all__ = [
    "Ask",
    "Deny",
    "EndTurn",
    "Hook",
    "HookPoint",
    "HookRecord",
    "HookedCall",
    "HookedModelCall",
    "HookedRun",
    "Proceed",
    "Replace",
    "Retry",
    "Verdict",
]

VerdictKind = Literal["proceed", "replace", "deny", "ask", "end_turn", "retry"]


class Proceed(Value):
    """Let it go on unchanged. A hook that returns None says the same."""

    kind: Literal["proceed"] = "proceed"


class Replace(Value):
    """Go on with another value.

    `before_model`: the instructions of this call. `after_model`: the text of the reply. `before_tool`: the
    arguments. `after_tool`: the text of the result. `on_end`: the output.
    """

    kind: Literal["replace"] = "replace"
    value: JsonValue


class Deny(Value):
    """Refuse the call, or withhold the reply or result; the model reads the reason."""

    kind: Literal["deny"] = "deny"
    reason: str


class Ask(Value):
    """Let a person decide about the tool call, who reads the reason."""

    kind: Literal["ask"] = "ask"
    reason: str


class EndTurn(Value):
    """End the run, or the session's turn, with this text as its answer; the stop reason is `guardrail`."""

    kind: Literal["end_turn"] = "end_turn"
    text: str


class Retry(Value):
    """Let the model try again, with guidance. The present reply or call takes no effect."""

    kind: Literal["retry"] = "retry"
    guidance: str


Verdict = Proceed | Replace | Deny | Ask | EndTurn | Retry

ALLOWED: Final[dict[HookPoint, frozenset[VerdictKind]]] = {
    "on_start": frozenset({"proceed", "end_turn"}),
    "before_model": frozenset({"proceed", "replace", "end_turn"}),
    "after_model": frozenset({"proceed", "replace", "deny", "retry", "end_turn"}),
    "before_tool": frozenset({"proceed", "replace", "deny", "ask", "retry", "end_turn"}),
    "after_tool": frozenset({"proceed", "replace", "deny", "retry", "end_turn"}),
    "on_end": frozenset({"proceed", "replace"}),
}
"""Verdicts that each point takes. Any other one is an error of the hook, and the call is not made."""


@dataclass(frozen=True, kw_only=True)
class HookedRun:
    """Run, or turn of a session, that a hook is asked about."""

    run_id: str
    agent: str
    user: str | None = None
    context: Mapping[str, Any] = field(default_factory=dict[str, Any])
    resources: Any = field(default=None, repr=False)
    """Value of the worker's `lifespan`; None without one."""
    step: int = 0
    message: Message | None = None
    """`on_start`: the message that the run or turn begins with."""
    output: Any = None
    """`on_end`: the output."""
    stop_reason: str = ""


@dataclass(frozen=True, kw_only=True)
class HookedModelCall:
    """Model call that a hook is asked about."""

    run: HookedRun
    request: "ModelRequest"
    text: str = ""
    """`after_model`: the text of the reply."""
    calls: tuple[ToolCall, ...] = ()
    """`after_model`: the tool calls that the reply asks for."""


@dataclass(frozen=True, kw_only=True)
class HookedCall:
    """Tool call that a hook is asked about: of a function, an MCP server, a remote tool or an agent, or a handoff."""

    run: HookedRun
    call_id: str
    tool: str
    arguments: Mapping[str, Any]
    carrier: Literal["function", "mcp", "remote", "agent", "handoff"] = "function"
    result: ToolResult | None = None
    """`after_tool`: the result, as the model would read it."""


class Hook:
    """Base of hooks: override the points that you want; each may be `async` or plain.

    Several hooks of an agent are asked in their order, each with the values that those before it have set. The
    first verdict other than Proceed and Replace counts.
    """

    @property
    def name(self) -> str:
        """Name in records and messages."""
        return type(self).__name__

    async def on_start(self, run: HookedRun) -> Verdict | None:
        """Look at a run, or a turn of a session, before its first model call."""
        return None

    async def before_model(self, call: HookedModelCall) -> Verdict | None:
        """Look at a model call before it is made."""
        return None

    async def after_model(self, call: HookedModelCall) -> Verdict | None:
        """Look at a reply before anything of it takes effect. Watchers have seen its text already."""
        return None

    async def before_tool(self, call: HookedCall) -> Verdict | None:
        """Look at a tool call before it is made."""
        return None

    async def after_tool(self, call: HookedCall) -> Verdict | None:
        """Look at a result before the model reads it."""
        return None

    async def on_end(self, run: HookedRun) -> Verdict | None:
        """Look at the output of a run, or of a turn, before it is given."""
        return None


def points_of(hooks: tuple[Hook, ...]) -> tuple[HookPoint, ...]:
    """Return the points that any of the hooks overrides, in a fixed order."""
    points: tuple[HookPoint, ...] = get_args(HookPoint)
    return tuple(
        point
        for point in points
        if any(getattr(type(hook), point) is not getattr(Hook, point) for hook in hooks)
    )
