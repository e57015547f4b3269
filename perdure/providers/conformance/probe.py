"""Probe of an adapter: one call, and what the protocol asks of every call."""

import asyncio
import math
from collections.abc import AsyncGenerator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any, get_args

from perdure.errors import RULES, ModelError
from perdure.messages import Message, Opaque, Part, Text, Thinking, ToolCall
from perdure.model import Model, ModelConfig, ModelEvent, ModelRequest, ModelStop, Reply, ToolDefinition

from .server import PlayingServer
from .shapes import Shapes

SEARCH = ToolDefinition(
    name="search",
    description="Search.",
    input_schema={"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]},
)
LONGEST_CALL = 30.0
"""Seconds after which a call is given up."""
_MOST_TOKENS = 10**12


class Violation(Exception):
    """Broken rule of an adapter; the message says what it does, and what to do."""


class NoShape(Exception):
    """The dialect has no recorded answer for a check."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Events of a call, or its error."""

    events: tuple[ModelEvent, ...] = ()
    error: ModelError | None = None

    @property
    def reply(self) -> Reply:
        """Reply of the call; a Violation where there is none."""
        if self.error is not None:
            raise Violation(f"the call ended with {_describe(self.error)}, and not with a reply")
        last = self.events[-1]
        assert isinstance(last, Reply), "checked when the call was made"
        return last

    @property
    def text(self) -> str:
        """Text of the reply."""
        return "".join(part.text for part in self.reply.parts if isinstance(part, Text))

    @property
    def calls(self) -> list[ToolCall]:
        """Tool calls of the reply."""
        return [part for part in self.reply.parts if isinstance(part, ToolCall)]

    def failure(self) -> ModelError:
        """Return the error of the call; a Violation where there is none."""
        if self.error is None:
            raise Violation(f"the call ended with the reply {self.text!r}, and not with an error")
        return self.error


@dataclass(frozen=True, kw_only=True)
class Probe:
    """An adapter, and the server that plays the answers of its dialect; both are None for a model without a wire."""

    model: Model
    config: ModelConfig
    server: PlayingServer | None = None
    shapes: Shapes | None = None
    notes: list[str] = field(default_factory=list[str])

    def request(self, *messages: Message, **changed: Any) -> ModelRequest:
        """Return a request with these messages, or with a plain one."""
        made = ModelRequest(config=self.config, messages=messages or (Message.user("Say hello."),))
        return replace(made, **changed)

    def play(self, shape: str) -> PlayingServer:
        """Set the answer of that name; raises NoShape where the dialect has none."""
        if self.server is None or self.shapes is None or shape not in self.shapes.answers:
            raise NoShape(shape)
        self.server.answer = self.shapes.answers[shape]
        return self.server

    async def call(self, shape: str, request: ModelRequest | None = None) -> Outcome:
        """Make a call that gets the answer of that name, and check it as every call."""
        server = self.play(shape)
        before = len(server.bodies)
        outcome = await self.ask(request or self.request(tools=(SEARCH,)))
        made = len(server.bodies) - before
        if made > 1:
            raise Violation(
                f"it sent {made} requests: switch off the retries of your library, Temporal retries"
            )
        return outcome

    async def ask(self, request: ModelRequest) -> Outcome:
        """Make a call, and check what holds for every call."""
        events: list[ModelEvent] = []
        try:
            async with asyncio.timeout(LONGEST_CALL):
                async for event in self.model.stream(request):
                    events.append(event)  # noqa: PERF401 - those before an error count too
        except ModelError as error:
            _check_error(error)
            return Outcome(error=error)
        except TimeoutError:
            raise Violation(
                f"the call did not end within {LONGEST_CALL:.0f} s: keep `ModelConfig.timeout`"
            ) from None
        except Exception as error:
            name = type(error).__name__
            raise Violation(
                f"stream raised {name}: {error}; raise ModelError, see `draft.unforeseen_error`"
            ) from None
        _check_events(events)
        return Outcome(events=tuple(events))

    async def close_early(self, shape: str) -> None:
        """Close the stream after its first event, and wait until the server sees that the client is gone."""
        server = self.play(shape)
        server.hung_up.clear()
        events = self.model.stream(self.request())
        if not isinstance(events, AsyncGenerator):
            raise Violation("stream gives no async generator, so closing it cannot close the connection")
        async with asyncio.timeout(LONGEST_CALL):
            async for _ in events:
                break
        await events.aclose()
        try:
            await asyncio.wait_for(server.hung_up.wait(), 10)
        except TimeoutError:
            raise Violation(
                "the connection stays open after the stream was closed: close it in a `finally`"
            ) from None

    def with_timeout(self, seconds: float) -> ModelRequest:
        """Return a plain request whose call may take that long."""
        config = self.config.model_copy(update={"timeout": timedelta(seconds=seconds)})
        return replace(self.request(), config=config)


def _check_error(error: ModelError) -> None:
    if error.kind not in RULES:
        raise Violation(f"ModelError has the unknown kind {error.kind!r}: use one of docs/errors.md")
    if error.usage is not None and not 0 <= error.usage.total_tokens <= _MOST_TOKENS:
        raise Violation(f"the error counts {error.usage.total_tokens} tokens")


def _check_events(events: list[ModelEvent]) -> None:
    known = get_args(ModelEvent)
    strange = next((event for event in events if not isinstance(event, known)), None)
    if strange is not None:
        raise Violation(f"stream yielded a {type(strange).__name__}: only the events of `ModelEvent` count")
    replies = [event for event in events if isinstance(event, Reply)]
    if len(replies) != 1 or events[-1] is not replies[0]:
        raise Violation(f"stream yielded {len(replies)} replies: yield exactly one, as the last event")
    _check_reply(replies[0])


def _check_reply(reply: Reply) -> None:
    if reply.stop not in get_args(ModelStop):
        raise Violation(f"the reply stops with {reply.stop!r}: use a `ModelStop`")
    wrong = next((p for p in reply.parts if not isinstance(p, Text | Thinking | Opaque | ToolCall)), None)
    if wrong is not None:
        raise Violation(f"the reply has a part {type(wrong).__name__}: no model writes such a part")
    if not 0 <= reply.usage.total_tokens <= _MOST_TOKENS:
        raise Violation(f"the reply counts {reply.usage.total_tokens} tokens: see `draft.count_tokens`")
    parts: list[Part] = list(reply.parts)
    try:
        message = Message(role="assistant", parts=parts)
        again = Message.model_validate_json(message.model_dump_json())
    except ValueError as error:
        raise Violation(f"the reply cannot be written as JSON: {error}") from None
    if again != message and not any(_has_nan(part) for part in parts):
        raise Violation("the reply is another one after it was written as JSON and read again")


def _has_nan(part: Part) -> bool:
    values = part.arguments.values() if isinstance(part, ToolCall) else ()
    return any(isinstance(value, float) and math.isnan(value) for value in values)


def _describe(error: ModelError) -> str:
    return f"{error.kind!r}: {error}"
