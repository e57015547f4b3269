"""The scripted model: it answers from a function or a list, streams like a provider, and needs no key.

It is shipped, for tests and demos of agents: an agent with `model="scripted:x"` runs without any provider.
Its usage is estimated at four bytes a token, and its price in the shipped table is invented.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from hashlib import sha256
from typing import Any, Final

from perdure.errors import DefinitionError, ErrorKind, ModelError, match_kind
from perdure.messages import (
    Message,
    Part,
    Text,
    Thinking,
    ToolCall,
    Usage,
    media_of,
    part_tokens,
)
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
)


@dataclass(frozen=True, kw_only=True)
class Line:
    """Answer of a script: text, tool calls, both, or an error as a provider would send it."""

    text: str = ""
    thinking: str = ""
    calls: tuple[ToolCall, ...] = ()
    stop: ModelStop | None = None
    usage: Usage | None = None
    error: ModelError | None = None

    def __add__(self, other: "Line") -> "Line":
        """Join two answers into one reply: `says("One moment.") + calls("search", q="x")`."""
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
    """Make the model answer with text."""
    return Line(text=text, thinking=thinking, stop=stop, usage=usage)


def calls(tool: str, /, **arguments: Any) -> Line:
    """Make the model call a tool; several in a list, or added together, are calls of the same step."""
    return Line(calls=(ToolCall(id="", name=tool, arguments=arguments),))


def fails(
    kind: ErrorKind | str, message: str = "scripted failure", *, retry_after: timedelta | None = None
) -> Line:
    """Make the model call fail, as a provider's would. A beginning names a kind that alone has it: `auth`.

    Raises:
        DefinitionError: no kind of error begins so, or several do.

    """
    try:
        named = match_kind(kind)
    except ValueError as error:
        raise DefinitionError(f"fails({kind!r}): no such kind of error; there are: {error}") from None
    return Line(error=ModelError(named, message, retry_after=retry_after))


@dataclass(frozen=True)
class ScriptedModel:
    """Model that follows a script: a function of the request, or a list with an answer for each step.

    The function may be async; it is called anew for each attempt. With a list, step n of any run gets the
    n-th answer.
    """

    script: Script
    delay: timedelta = timedelta()
    """Wait before each piece of text."""
    chunk: int = 16
    """Characters of a piece of text."""
    pauses: Callable[[float], Awaitable[None]] = field(default=asyncio.sleep, repr=False)
    """Function that waits for so many seconds: a test may put its own clock here."""

    def check(self, config: ModelConfig) -> None:
        """Accept every config."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Stream the script's answer to this request."""
        line = await self._run_script(request)
        # Counted at the start, as Anthropic does: a call that is cut then has a cost.
        input_tokens = _count_input(request)
        yield UsageSoFar(usage=Usage(input_tokens=input_tokens))
        if line.thinking:
            yield ThinkingDelta(text=line.thinking)
        for piece in self._split(line.text):
            if self.delay:
                await self.pauses(self.delay.total_seconds())
            yield TextDelta(text=piece)
        if line.error is not None:
            # Every attempt raises the same object: its traceback would grow each time.
            raise line.error.with_traceback(None)
        yield _build_reply(request, line, input_tokens)

    def _split(self, text: str) -> Iterator[str]:
        for start in range(0, len(text), self.chunk):
            yield text[start : start + self.chunk]

    async def _run_script(self, request: ModelRequest) -> Line:
        answer = self._answer_of_step(request)
        if inspect.isawaitable(answer):
            answer = await answer
        # Scripts are written by hand: whatever they return is checked here, where the message can say so.
        lines = [answer] if isinstance(answer, Line) else list(answer) if isinstance(answer, Sequence) else []  # pyright: ignore[reportUnnecessaryIsInstance]
        if not lines or not all(isinstance(line, Line) for line in lines):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise ModelError("bug", f"the script answered {answer!r}; answer with says(...) or calls(...)")
        return sum(lines[1:], start=lines[0])

    def _answer_of_step(self, request: ModelRequest) -> Answer | Awaitable[Answer]:
        if callable(self.script):
            return self.script(request)
        if request.step > len(self.script):
            raise ModelError(
                "bug", f"the script has {len(self.script)} answers and step {request.step} asks for one more"
            )
        return self.script[request.step - 1]


def _count_input(request: ModelRequest) -> int:
    tools = canonical_json([tool.model_dump() for tool in request.tools])
    fixed = _tokens(len(request.instructions.encode()) + len(tools))
    return fixed + sum([_count_message(message).tokens for message in request.messages])


@dataclass(frozen=True, slots=True)
class _Count:
    """Message as this model is shown it: without `meta`, which no provider is sent, and none bills for."""

    tokens: int
    digest: bytes


def _count_message(message: Message) -> _Count:
    """Return the tokens and the digest of a message, counted once."""
    found: _Count | None = message.cache.find("scripted", None)
    if found is None:
        found = _show(message)
        message.cache.add("scripted", None, found, _COUNT_BYTES)
    return found


def _show(message: Message) -> _Count:
    content = message.model_dump_json(exclude={"meta"}).encode()
    media = media_of(message)
    encoded = sum(len(part.data or "") for part in media)
    tokens = _tokens(len(content) - encoded) + sum(part_tokens(part) for part in media)
    return _Count(tokens, sha256(content).digest())


_COUNT_BYTES: Final = 160


def _request_digest(request: ModelRequest) -> str:
    digest = sha256(request.instructions.encode(errors="surrogatepass") + b"\0")
    digest.update(b"".join([_count_message(message).digest for message in request.messages]))
    return digest.hexdigest()


def _tokens(byte_count: int) -> int:
    """Return the count of this model for text: four bytes a token."""
    return -(-byte_count // 4)


def _size_bytes(part: Part) -> int:
    try:
        return len(part.model_dump_json().encode())
    except ValueError:
        # Lone surrogates are no JSON: a script may try what a model may send.
        return len(repr(part))


def _build_reply(request: ModelRequest, line: Line, input_tokens: int) -> Reply:
    parts: list[Part] = []
    if line.thinking:
        parts.append(Thinking(text=line.thinking))
    if line.text:
        parts.append(Text(text=line.text))
    parts.extend(line.calls)
    output_bytes = sum(_size_bytes(part) for part in parts)
    stop: ModelStop = line.stop or ("tool_calls" if line.calls else "end_turn")
    return Reply(
        parts=tuple(parts),
        stop=stop,
        usage=line.usage or Usage(input_tokens=input_tokens, output_tokens=_tokens(output_bytes)),
        request_digest=_request_digest(request),
    )
