"""The scripted model: answers from a function or a list, streams like a provider, needs no key.

It is shipped, not only used by our tests: an agent that names `model="scripted:x"` runs whole
without a provider. Everything about it is labelled as scripted; its usage is counted at four bytes
a token, and its price in the shipped table is a made-up one.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from perdure.errors import ErrorKind, ModelError
from perdure.messages import Part, Text, Thinking, ToolCall, Usage, estimate_tokens, estimated_tokens
from perdure.model import (
    ModelConfig,
    ModelEvent,
    ModelRequest,
    ModelStop,
    Reply,
    TextDelta,
    ThinkingDelta,
    UsageSoFar,
    canonical_json,
    digest,
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """What a script answers: words, calls, both, or an error as a provider would give it."""

    text: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    stop: ModelStop | None = None
    usage: Usage | None = None
    error: ModelError | None = None

    def __add__(self, other: "Line") -> "Line":
        """Both in one reply: `says("One moment.") + calls("search", q="x")`."""
        return Line(
            text=self.text + other.text,
            thinking=self.thinking + other.thinking,
            calls=self.calls + other.calls,
            stop=other.stop or self.stop,
            usage=other.usage or self.usage,
            error=self.error or other.error,
        )


Answer = Line | Sequence[Line]
Script = Callable[[ModelRequest], Answer | Awaitable[Answer]] | Sequence[Answer]


def says(text: str, *, thinking: str = "", stop: ModelStop | None = None, usage: Usage | None = None) -> Line:
    """The model answers in words."""
    return Line(text=text, thinking=thinking, stop=stop, usage=usage)


def calls(tool: str, /, **arguments: Any) -> Line:
    """The model calls a tool. Several in a list, or added together, are one step."""
    return Line(calls=(ToolCall(id="", name=tool, arguments=arguments),))


def fails(
    kind: ErrorKind, message: str = "scripted failure", *, retry_after: timedelta | None = None
) -> Line:
    """The call fails as a provider's would."""
    return Line(error=ModelError(kind, message, retry_after=retry_after))


@dataclass(frozen=True)
class ScriptedModel:
    """A model that follows a script: a function of the request, or a list with one answer a step.

    The function may be async; it is called anew for each attempt. With a list, step n of any run
    gets the n-th answer. `delay` is waited before each `chunk` characters of text.
    """

    script: Script
    delay: timedelta = timedelta()
    chunk: int = 16
    pauses: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)

    def check(self, config: ModelConfig) -> None:
        """Everything goes."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Play the script's answer to this request."""
        line = await self._line(request)
        read = _input_tokens(request)
        yield UsageSoFar(usage=Usage(input_tokens=read))
        if line.thinking:
            yield ThinkingDelta(text=line.thinking)
        for piece in self._pieces(line.text):
            if self.delay:
                await self.pauses(self.delay.total_seconds())
            yield TextDelta(text=piece)
        if line.error is not None:
            raise line.error.with_traceback(None)  # it is raised again and again
        yield _reply(request, line, read)

    def _pieces(self, text: str) -> Iterator[str]:
        for start in range(0, len(text), self.chunk):
            yield text[start : start + self.chunk]

    async def _line(self, request: ModelRequest) -> Line:
        answer = self._answer(request)
        if inspect.isawaitable(answer):
            answer = await answer
        lines = [answer] if isinstance(answer, Line) else list(answer) if isinstance(answer, Sequence) else []  # pyright: ignore[reportUnnecessaryIsInstance]
        if not lines or not all(isinstance(line, Line) for line in lines):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelError("bug", f"the script answered {answer!r}; answer with says(...) or calls(...)")
        return sum(lines[1:], start=lines[0])

    def _answer(self, request: ModelRequest) -> Answer | Awaitable[Answer]:
        if callable(self.script):
            return self.script(request)
        if request.step > len(self.script):
            raise ModelError(
                "bug", f"the script has {len(self.script)} answers and step {request.step} asks for one more"
            )
        return self.script[request.step - 1]


def _input_tokens(request: ModelRequest) -> int:
    tools = canonical_json([tool.model_dump() for tool in request.tools])
    written = estimate_tokens(len(request.instructions.encode()) + len(tools))
    # How a reply came to be is kept beside it; no provider is sent it, and none bills for it.
    said = (message.model_copy(update={"meta": None}) for message in request.messages)
    return written + sum(estimated_tokens(message) for message in said)


def _written_bytes(part: Part) -> int:
    try:
        return len(part.model_dump_json().encode())
    except ValueError:  # half characters and the like: a script may try what a model may do
        return len(repr(part))


def _reply(request: ModelRequest, line: Line, read: int) -> Reply:
    parts: list[Part] = []
    if line.thinking:
        parts.append(Thinking(text=line.thinking))
    if line.text:
        parts.append(Text(text=line.text))
    parts.extend(line.calls)
    said = sum(_written_bytes(part) for part in parts)
    stop: ModelStop = line.stop or ("tool_calls" if line.calls else "end_turn")
    return Reply(
        parts=tuple(parts),
        stop=stop,
        usage=line.usage or Usage(input_tokens=read, output_tokens=estimate_tokens(said)),
        request_digest=digest(
            [request.instructions, [message.model_dump(exclude={"meta"}) for message in request.messages]]
        ),
    )
