"""Tools: functions a model may call, as immutable descriptions."""

import inspect
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from threading import Event
from typing import Any, Literal, Protocol, get_args, overload

from perdure.errors import DefinitionError
from perdure.fallbacks import ToolFallback
from perdure.members import Member
from perdure.retries import ToolRetry
from perdure.schema import Signature, check_schema, signature_of
from perdure.wire.spec import Collect

Effect = Literal["read", "write"]
"""Whether a call changes the world. A read may be repeated freely; a write should use its idempotency key."""

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class ToolContext:
    """What a call may know of its run. Give a parameter this type and it is filled in."""

    run_id: str
    call_id: str
    idempotency_key: str
    """The same for every attempt of this call, whatever crashed in between; of no other call."""
    attempt: int
    """From 1. Above 1 an earlier attempt may have done its work before it failed."""
    deadline: datetime
    """When this attempt is given up."""
    agent: str = ""
    user: str | None = None
    context: dict[str, Any] = field(default_factory=dict[str, Any])
    """What the caller of `start` put into `context`."""
    report: Callable[[str], None] = field(default=lambda text: None, repr=False)
    cancelled: Event = field(default_factory=Event, repr=False)
    """Set when the call is stopped: what a function in a thread can look at."""

    def progress(self, text: str) -> None:
        """Tell those who watch how far the call is. Costs no history; only the newest is kept."""
        self.report(text)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """A function with its description. Made by `@tool`."""

    name: str
    description: str
    input_schema: dict[str, Any] = field(repr=False)
    function: Callable[..., Any] = field(repr=False)
    signature: Signature = field(repr=False)
    effect: Effect = "read"
    approval: bool = False
    """True: a person decides about each call."""
    resource: str | None = None
    """Name of the parameter that says what the call works on; policies match its value."""
    timeout: timedelta = timedelta(minutes=1)
    """Of one attempt."""
    heartbeat: timedelta = timedelta(seconds=10)
    """A worker that says nothing for this long is taken for dead and the call is tried elsewhere."""
    retry: ToolRetry = field(default_factory=ToolRetry)
    concurrency: int | None = None
    """Most calls of this tool at once in one run."""
    task_queue: str | None = None
    """Where workers take its calls from; None: the run's own queue."""
    fallback: ToolFallback | None = None
    """What answers when it has failed for good; None: the model is told of the failure."""
    circuit: bool = False
    """True: after some failures in a row this worker calls it no more for a while, and says so at once."""

    def __post_init__(self) -> None:
        check_tool(self)

    @property
    def is_async(self) -> bool:
        """Whether the function is awaited; others run in a thread."""
        return inspect.iscoroutinefunction(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function as written."""
        return self.function(*args, **kwargs)


@dataclass(frozen=True, kw_only=True)
class RemoteTool:
    """A tool that is a Temporal activity, in any language, on a task queue of its own.

    The activity's type is `activity` (or `name`). It gets two JSON arguments: the call's arguments,
    and `{"run_id", "call_id", "idempotency_key", "agent", "user", "context"}`. What it returns is JSON;
    a string is taken as it is. It should heartbeat if it outlasts `heartbeat`, when that is set.
    """

    name: str
    description: str
    input_schema: dict[str, Any]
    task_queue: str
    activity: str | None = None
    effect: Effect = "read"
    approval: bool = False
    resource: str | None = None
    timeout: timedelta = timedelta(minutes=1)
    heartbeat: timedelta | None = None
    retry: ToolRetry = field(default_factory=ToolRetry)
    concurrency: int | None = None
    fallback: ToolFallback | None = None
    """As `Tool.fallback`; nothing is remembered of remote tools."""

    def __post_init__(self) -> None:
        if not self.description.strip():
            raise DefinitionError(f"tool {self.name!r} has no description")
        check_schema(self.input_schema, f"tool {self.name!r}")
        check_tool(self)


@dataclass(frozen=True, kw_only=True)
class PersonTool:
    """A question to a person: the run waits until `send` answers it."""

    name: str = "ask_person"
    description: str = "Ask a person a question and wait for the answer. Use it only when you cannot go on."


@dataclass(frozen=True, kw_only=True)
class AgentTool:
    """An agent, swarm or graph that a model may call; each call is a run of its own. Made by `as_tool`."""

    name: str
    description: str
    member: Member = field(repr=False)
    collect: Collect = "all"
    """"all": the call's result is the answer. "completion": the call returns at once, and each answer
    reaches the model as a message when it is there, the quickest first."""
    approval: bool = False
    timeout: timedelta | None = None
    """Wall clock of one run of it."""
    concurrency: int | None = 100
    """Most runs of it at once, of one run of the caller."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise _bad_name(self.name)
        if not self.description.strip():
            raise DefinitionError(
                f"tool {self.name!r} has no description: the model would not know when to call it"
            )
        if self.collect not in get_args(Collect):
            raise DefinitionError(f"tool {self.name!r}: collect is {self.collect!r}; all or completion")
        if self.timeout is not None and self.timeout <= timedelta():
            raise DefinitionError(f"tool {self.name!r}: timeout must be positive, not {self.timeout!r}")
        if self.concurrency is not None and self.concurrency < 1:
            raise DefinitionError(
                f"tool {self.name!r}: concurrency must be 1 or more, not {self.concurrency!r}"
            )


def as_tool(
    member: Member,
    name: str | None = None,
    description: str | None = None,
    *,
    collect: Collect = "all",
    approval: bool = False,
    timeout: timedelta | None = None,
    concurrency: int | None = 100,
) -> AgentTool:
    """Make a tool of an agent, swarm or graph. Name and description are its own unless given."""
    return AgentTool(
        name=name or member.name.replace(".", "_"),
        description=description or member.description,
        member=member,
        collect=collect,
        approval=approval,
        timeout=timeout,
        concurrency=concurrency,
    )


ask_person = PersonTool()
"""The tool that asks whoever can answer: put it among an agent's tools."""

AnyTool = Tool | RemoteTool | PersonTool | AgentTool


def check_tool(made: "Tool | RemoteTool") -> None:
    """Refuse what no provider or server would take.

    Raises:
        DefinitionError: naming the tool and the field.

    """
    name = made.name
    if not _NAME.fullmatch(name):
        raise _bad_name(name)
    for what, span in (("timeout", made.timeout), ("heartbeat", made.heartbeat)):
        if span is not None and span <= timedelta():
            raise DefinitionError(f"tool {name!r}: {what} must be positive, not {span!r}")
    if made.concurrency is not None and made.concurrency < 1:
        raise DefinitionError(f"tool {name!r}: concurrency must be 1 or more, not {made.concurrency!r}")
    if made.resource is not None and made.resource not in made.input_schema.get("properties", {}):
        raise DefinitionError(f"tool {name!r}: resource {made.resource!r} is none of its parameters")
    _check_fallback(made)


def _check_fallback(made: "Tool | RemoteTool") -> None:
    fallback = made.fallback
    if fallback is None:
        return
    if not isinstance(fallback, ToolFallback):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"tool {made.name!r}: fallback must be a ToolFallback, not {fallback!r}")
    if fallback.tool == made.name:
        raise DefinitionError(f"tool {made.name!r}: it cannot be its own fallback")
    if fallback.remembered is not None and (made.effect == "write" or isinstance(made, RemoteTool)):
        what = "remote tools" if isinstance(made, RemoteTool) else "a tool that writes"
        raise DefinitionError(f"tool {made.name!r}: nothing can be remembered of {what}")


def _bad_name(name: str) -> DefinitionError:
    return DefinitionError(
        f"tool name {name!r}: use letters, digits, '_' and '-', at most 64, starting with a letter"
    )


class _Decorator(Protocol):
    def __call__(self, function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(function: Callable[..., Awaitable[Any]] | Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    effect: Effect = "read",
    approval: bool = False,
    resource: str | None = None,
    timeout: timedelta = ...,
    heartbeat: timedelta = ...,
    retry: ToolRetry = ...,
    concurrency: int | None = None,
    task_queue: str | None = None,
    fallback: ToolFallback | None = None,
    circuit: bool = False,
) -> _Decorator: ...
def tool(function: Callable[..., Any] | None = None, /, **settings: Any) -> Tool | _Decorator:
    """Make a tool of a function: its type hints become the schema, its docstring the description.

    Functions may be sync (they run in a thread) or async. The result may be a string, any JSON
    value, a pydantic model, an `Image` or `Document`, or a list that mixes text with those.
    What the function raises reaches the model as text, after `retry` has been used up.

    Raises:
        DefinitionError: no docstring, or a parameter that no JSON value can fill.

    """
    if function is None:
        return partial(_make, settings=settings)
    return _make(function, settings)


def _make(function: Callable[..., Any], settings: dict[str, Any]) -> Tool:
    name = settings.pop("name", None) or getattr(function, "__name__", "tool")
    signature = signature_of(function, name)
    description = settings.pop("description", None) or signature.description
    return Tool(
        name=name,
        description=description,
        input_schema=signature.input_schema,
        function=function,
        signature=signature,
        **settings,
    )
