"""Tools: immutable descriptions of functions, activities, people and agents that a model may call."""

import inspect
import re
from asyncio import AbstractEventLoop, run, run_coroutine_threadsafe
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, timedelta
from functools import partial
from threading import Event
from types import MethodType
from typing import Any, Generic, Literal, Protocol, cast, get_args, overload

from perdure.definitions import Definition, check_names, check_types
from perdure.errors import DefinitionError
from perdure.fallbacks import ToolFallback
from perdure.members import Member
from perdure.resources import Resources
from perdure.retries import ToolRetry
from perdure.schema import Signature, check_schema, signature_of
from perdure.wire.spec import Collect

Effect = Literal["read", "write"]
"""Effect of a call. A read may be repeated freely; a write should use its idempotency key."""

# The strictest rule among the providers: so that an agent can change its model.
_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class ToolContext(Generic[Resources]):
    """Facts about the call and its run. A parameter of this type gets them; the model does not see it."""

    run_id: str
    call_id: str
    idempotency_key: str
    """Key that all attempts of this call share, whatever crashed, was retried or reset, and no other call has."""
    attempt: int
    """Number of the attempt, from 1. Above 1, an earlier attempt may have had its effect."""
    deadline: datetime
    """Time at which this attempt times out."""
    agent: str = ""
    user: str | None = None
    context: dict[str, Any] = field(default_factory=dict[str, Any])
    """Values from the run's request."""
    resources: Resources = field(default=cast("Any", None), repr=False)
    """Value of the worker's `lifespan`, such as a pool of connections; None without one."""
    # Set by the worker; in a function's own tests a report goes nowhere.
    report: Callable[[str], None] = field(default=lambda text: None, repr=False)
    cancelled: Event = field(default_factory=Event, repr=False)
    """Set when the call is cancelled: a function in a thread can check it."""
    ask_credentials: Callable[[bool], Awaitable[Any]] | None = field(default=None, repr=False)
    loop: AbstractEventLoop | None = field(default=None, repr=False)
    """Event loop of the worker."""

    async def credentials(self, *, fresh: bool = False) -> Any:
        """Return the user's credentials for this tool, by the `@credentials` function of the agent's file.

        They are kept until they expire. `fresh` asks anew: for a tool whose other side has refused them.

        Raises:
            DefinitionError: the file has no such function.
            Exception: what the function raises.

        """
        if self.ask_credentials is None:
            raise DefinitionError(
                "credentials() works in a call that a worker makes; in a test give ask_credentials"
            )
        return await self.ask_credentials(fresh)

    def wait_for_credentials(self, *, fresh: bool = False) -> Any:
        """Return the same in a function that is not async, and so has a thread."""
        if self.loop is None:
            return run(self.credentials(fresh=fresh))
        return run_coroutine_threadsafe(self.credentials(fresh=fresh), self.loop).result()

    def progress(self, text: str) -> None:
        """Report progress to watchers. It costs no history; only the newest report is kept."""
        self.report(text)


@dataclass(frozen=True, kw_only=True)
class Tool:
    """Function with its description. Made by `@tool`."""

    name: str
    description: str
    input_schema: dict[str, Any] = field(repr=False)
    function: Callable[..., Any] = field(repr=False)
    signature: Signature = field(repr=False)
    effect: Effect = "read"
    approval: bool = False
    """True: each call waits until a person allows or denies it."""
    resource: str | None = None
    """Name of the parameter whose value policies match as the resource."""
    timeout: timedelta = timedelta(minutes=1)
    """Longest time of one attempt."""
    heartbeat: timedelta = timedelta(seconds=10)
    """Time without a heartbeat after which the worker counts as dead and the call is retried elsewhere."""
    retry: ToolRetry = field(default_factory=ToolRetry)
    concurrency: int | None = None
    """Most calls of this tool at the same time in a run."""
    task_queue: str | None = None
    """Task queue of its calls; None: the run's own queue."""
    fallback: ToolFallback | None = None
    """Stand-in that answers once its attempts are used up; None: the model gets the error."""
    circuit: bool = False
    """True: after some failures in a row, this worker fails its calls at once for a while."""
    polls: bool = False
    """True: it is made to be asked the same again, and `Limits.identical_calls` does not count its calls."""

    def __post_init__(self) -> None:
        check_tool(self)

    @property
    def is_async(self) -> bool:
        """True when the function is awaited; False when it runs in a thread."""
        return inspect.iscoroutinefunction(self.function)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the function itself."""
        return self.function(*args, **kwargs)

    def __get__(self, instance: Any, owner: Any = None) -> "Tool":
        """Return the tool of an object, whose method it is."""
        if instance is None or not self.signature.is_method:
            return self
        signature = replace(self.signature, is_method=False)
        return replace(self, function=MethodType(self.function, instance), signature=signature)


@dataclass(frozen=True, kw_only=True)
class RemoteTool(Definition):
    """Tool that is a Temporal activity, in any language, on a task queue of its own.

    The activity's type is `activity`, or `name`. It gets two JSON arguments: the call's arguments, and
    `{"run_id", "call_id", "idempotency_key", "earlier_attempts", "agent", "user", "context"}`. It returns JSON;
    the model gets a string as it is. With `heartbeat` set, an activity that runs longer must send heartbeats.
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
    """Stand-in, as `Tool.fallback`. Results of remote tools are not remembered."""
    polls: bool = False
    """As `Tool.polls`."""

    def __post_init__(self) -> None:
        if not self.description.strip():
            raise DefinitionError(f"tool {self.name!r} has no description")
        check_schema(self.input_schema, f"tool {self.name!r}")
        check_tool(self)


@dataclass(frozen=True, kw_only=True)
class PersonTool:
    """Question to a person. The run waits until `send` answers it."""

    name: str = "ask_person"
    description: str = "Ask a person a question and wait for the answer. Use it only when you cannot go on."


@dataclass(frozen=True, kw_only=True)
class AgentTool:
    """Agent, swarm or graph that a model may call; each call is a child run. Made by `as_tool`."""

    name: str
    description: str
    member: Member = field(repr=False)
    collect: Collect = "all"
    """Return of the answer. "all": it is the call's result. "completion": the call returns at once, and the
    answer reaches the model as a message as soon as the child run ends."""
    approval: bool = False
    timeout: timedelta | None = None
    """Wall clock of a child run."""
    concurrency: int | None = 100
    """Most child runs of this tool at the same time in a run of the caller."""

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise _name_error(self.name)
        if not self.description.strip():
            raise DefinitionError(
                f"tool {self.name!r} has no description: the model would not know when to call it"
            )
        if self.collect not in get_args(Collect):
            raise DefinitionError(f"tool {self.name!r}: collect is {self.collect!r}; use all or completion")
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
    """Make a tool of an agent, swarm or graph; name and description default to those of the member."""
    return AgentTool(
        # Names of members may have dots, names of tools may not.
        name=name or member.name.replace(".", "_"),
        description=description or member.description,
        member=member,
        collect=collect,
        approval=approval,
        timeout=timeout,
        concurrency=concurrency,
    )


ask_person = PersonTool()
"""Tool by which an agent asks a person: add it to the agent's tools."""

AnyTool = Tool | RemoteTool | PersonTool | AgentTool


def check_tool(tool: "Tool | RemoteTool") -> None:
    """Check the fields that providers or Temporal would reject later.

    Raises:
        DefinitionError: a field is wrong; the message names the tool and the field.

    """
    name = tool.name
    check_types(tool, f"tool {name!r}")
    if not _NAME.fullmatch(name):
        raise _name_error(name)
    if tool.effect not in get_args(Effect):
        raise DefinitionError(f"tool {name!r}: effect must be 'read' or 'write', not {tool.effect!r}")
    for what, span in (("timeout", tool.timeout), ("heartbeat", tool.heartbeat)):
        if span is not None and span <= timedelta():
            raise DefinitionError(f"tool {name!r}: {what} must be positive, not {span!r}")
    if tool.concurrency is not None and tool.concurrency < 1:
        raise DefinitionError(f"tool {name!r}: concurrency must be 1 or more, not {tool.concurrency!r}")
    # A misspelt resource would match no rule of a policy, and a rule that denies must not fail silently.
    if tool.resource is not None and tool.resource not in tool.input_schema.get("properties", {}):
        raise DefinitionError(f"tool {name!r}: resource {tool.resource!r} is not one of its parameters")
    _check_fallback(tool)


def _check_fallback(tool: "Tool | RemoteTool") -> None:
    fallback = tool.fallback
    if fallback is None:
        return
    if not isinstance(fallback, ToolFallback):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise DefinitionError(f"tool {tool.name!r}: fallback must be a ToolFallback, not {fallback!r}")
    if fallback.tool == tool.name:
        raise DefinitionError(f"tool {tool.name!r}: it cannot be its own fallback")
    # A remembered result in place of a write would claim an effect that never happened. Results of remote
    # tools do not pass through this worker, so it has none to remember.
    if fallback.remembered is not None and (tool.effect == "write" or isinstance(tool, RemoteTool)):
        reason = "a remote tool" if isinstance(tool, RemoteTool) else "a tool that writes"
        raise DefinitionError(f"tool {tool.name!r}: fallback.remembered does not work for {reason}")


def _name_error(name: str) -> DefinitionError:
    return DefinitionError(
        f"tool name {name!r}: use letters, digits, '_' and '-', at most 64, starting with a letter"
    )


_SETTINGS = {
    "name",
    "description",
    "schema",
    *({each.name for each in fields(Tool)} - {"input_schema", "function", "signature"}),
}


class _Decorator(Protocol):
    def __call__(self, function: Callable[..., Any], /) -> Tool: ...


@overload
def tool(function: Callable[..., Awaitable[Any]] | Callable[..., Any], /) -> Tool: ...
@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    schema: dict[str, Any] | None = None,
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
    polls: bool = False,
) -> _Decorator: ...
def tool(function: Callable[..., Any] | None = None, /, **settings: Any) -> Tool | _Decorator:
    """Make a tool of a function: its type hints become the schema, its docstring the description.

    The function may be async; otherwise it runs in a thread. It may return text, any JSON value, a pydantic
    model, an `Image` or `Document`, or a list that mixes text with these. An error that it raises reaches the
    model as text once the attempts of `retry` are used up. With a JSON `schema`, that is what the model is given, and
    the function gets the arguments by their names. A method is a tool of each object: `tools=[desk.look_up]`.

    Raises:
        DefinitionError: the function has no docstring, a parameter that no JSON value fits, or there is no such
            setting.

    """
    if function is None:
        return partial(_tool_from, settings=settings)
    return _tool_from(function, settings)


def _tool_from(function: Callable[..., Any], settings: dict[str, Any]) -> Tool:
    settings = dict(settings)
    name = settings.pop("name", None) or getattr(function, "__name__", "tool")
    schema, description = settings.pop("schema", None), settings.pop("description", None)
    check_names(settings, _SETTINGS, f"tool {name!r}")
    signature = signature_of(function, name, schema=schema, description=description)
    return Tool(
        name=name,
        description=signature.description,
        input_schema=signature.input_schema,
        function=function,
        signature=signature,
        **settings,
    )
