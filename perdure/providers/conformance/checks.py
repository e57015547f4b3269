"""Checks of the suite: what an adapter must make of each recorded answer, and what the protocol asks beside them.

The name of a check is that of its shape. Its docstring is what a person reads.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import Final

from perdure.delays import LONGEST_DELAY
from perdure.errors import RULES, DefinitionError, ErrorKind, ModelError
from perdure.messages import Document, Image, Message, Opaque, ReplyMeta, Text, Thinking, ToolCall, ToolResult

from .probe import SEARCH, Outcome, Probe, Violation

Check = Callable[[Probe], Awaitable[None]]
_PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
TEA, RICE = {"query": "tea"}, {"query": "rice"}


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


# -- the protocol itself


async def check_settings(probe: Probe) -> None:
    """Check that `check` takes a plain config, and refuses an option that nobody knows."""
    probe.model.check(probe.config)
    odd = probe.config.model_copy(update={"options": {"wings": 2}})
    try:
        probe.model.check(odd)
    except DefinitionError:
        return
    raise Violation("check takes the option 'wings': raise DefinitionError, see `read_options`")


async def check_plain_call(probe: Probe) -> None:
    """Check that a plain call ends with one reply, or with a ModelError."""
    outcome = await (probe.ask(probe.request()) if probe.server is None else probe.call("text"))
    if outcome.error is not None and probe.server is None:
        probe.notes.append(f"the model answered with {outcome.error.kind}: {outcome.error}")


async def check_calls_together(probe: Probe) -> None:
    """Check that one object serves several calls at once."""
    if probe.server is not None:
        probe.play("text")
    outcomes = await asyncio.gather(*(probe.ask(probe.request()) for _ in range(3)))
    if probe.server is not None:
        texts = [outcome.text for outcome in outcomes]
        _expect(
            texts == ["Hello, world"] * 3,
            f"three calls at once gave {texts}: keep nothing about a call in it",
        )


async def check_any_transcript(probe: Probe) -> None:
    """Check that any conversation can be sent: with odd texts, names and ids, pictures, parts of other models."""
    if probe.server is not None:
        probe.play("text")
    meta = ReplyMeta(step=1, model="other:model")
    call = ToolCall(
        id="call-1-1", name="no such tool!", arguments={"half": "\ud83d"}, problem="there is no such tool"
    )
    content = [Text(text=""), Image(data=_PNG), Document(data="JVBERi0=", media_type="application/x-odd")]
    messages = (
        Message.user([Text(text=" "), Image(data="no base64!"), Image(data=_PNG)]),
        Message(
            role="assistant",
            parts=[Thinking(text="hm", signature="s"), Opaque(provider="other", data={"type": "odd"}), call],
            meta=meta,
        ),
        Message.user("In the meantime: \ud83d \0"),
        Message(role="tool", parts=[ToolResult(call_id="call-1-1", name=call.name, content=[*content])]),
        Message(role="assistant", parts=[], meta=meta),
        Message.user("Go on."),
    )
    outcome = await probe.ask(probe.request(*messages, tools=(SEARCH,), instructions="Half \ud83d"))
    if outcome.error is not None and probe.server is not None:
        raise Violation(f"the request was not sent: {outcome.error}; begin with `make_sendable`")
    if probe.server is not None:
        body = probe.server.bodies[-1]
        _expect(isinstance(body, dict), f"the body of the request is no JSON object: {str(body)[:200]!r}")


# -- answers


async def check_text(probe: Probe) -> None:
    """Check that a text that comes in pieces is one reply, which ends the turn."""
    outcome = await probe.call("text")
    _expect(outcome.text == "Hello, world", f"the text is {outcome.text!r}, and not 'Hello, world'")
    _expect(outcome.reply.stop == "end_turn", f"it stops with {outcome.reply.stop!r}, and not 'end_turn'")
    _expect(len(outcome.events) > 1, "no event came before the reply: yield what `draft.append` returns")


async def check_usage(probe: Probe) -> None:
    """Check that the counts are disjoint: 11 tokens read, 5 more from the cache, 7 written."""
    usage = (await probe.call("usage")).reply.usage
    found = (usage.input_tokens, usage.cache_read_tokens, usage.output_tokens)
    _expect(found == (11, 5, 7), f"input, cache and output are {found}, and not (11, 5, 7)")
    _expect(not usage.estimated, "the usage is marked as estimated, though the provider counted")


async def check_odd_usage(probe: Probe) -> None:
    """Check that counts that make no sense cost no answer: they are estimated."""
    outcome = await probe.call("odd_usage")
    _expect(outcome.text == "Hello, world", f"the text is {outcome.text!r}, and not 'Hello, world'")
    _expect(outcome.reply.usage.estimated, "the usage is not marked as estimated: see `draft.count_tokens`")


async def check_thinking(probe: Probe) -> None:
    """Check that reasoning is apart from the text."""
    outcome = await probe.call("thinking")
    thoughts = [part.text for part in outcome.reply.parts if isinstance(part, Thinking)]
    _expect(thoughts == ["Let me see."], f"the reasoning is {thoughts}, and not ['Let me see.']")
    _expect(outcome.text == "42", f"the text is {outcome.text!r}, and not '42'")


def _expect_calls(outcome: Outcome, *arguments: dict[str, str]) -> None:
    found = [(call.name, call.problem or call.arguments) for call in outcome.calls]
    _expect(found == [("search", each) for each in arguments], f"the calls are {found}, and not {arguments}")
    stop = outcome.reply.stop
    _expect(stop == "tool_calls", f"it stops with {stop!r}, and not 'tool_calls'")


async def check_call(probe: Probe) -> None:
    """Check that the arguments of a call, which come in pieces, are joined."""
    _expect_calls(await probe.call("call"), TEA)


async def check_calls(probe: Probe) -> None:
    """Check that several calls keep their order and their arguments."""
    _expect_calls(await probe.call("calls"), TEA, RICE)


async def check_one_index(probe: Probe) -> None:
    """Check that calls that share an index, or have no ids, are several calls."""
    _expect_calls(await probe.call("one_index"), TEA, RICE)


async def check_arguments_as_object(probe: Probe) -> None:
    """Check that arguments may come as a JSON object in place of text."""
    _expect_calls(await probe.call("arguments_as_object"), TEA)


async def check_broken_arguments(probe: Probe) -> None:
    """Check that arguments that are no JSON object reach no tool: the call has a problem."""
    calls = (await probe.call("broken_arguments")).calls
    _expect(len(calls) == 1 and bool(calls[0].problem), f"the calls are {calls}: see `parse_tool_call`")


async def check_max_tokens(probe: Probe) -> None:
    """Check that a call that the reply's length has cut reaches no tool, even if it parses."""
    outcome = await probe.call("max_tokens")
    _expect(outcome.reply.stop == "max_tokens", f"it stops with {outcome.reply.stop!r}, and not 'max_tokens'")
    _expect(
        bool(outcome.calls and outcome.calls[-1].problem), "the cut call has no problem: see `draft.reply`"
    )


async def check_refusal(probe: Probe) -> None:
    """Check that an answer that a filter stopped is a refusal, and what it answers is not sent again."""
    reply = (await probe.call("refusal")).reply
    _expect(reply.stop in ("refusal", "guardrail"), f"it stops with {reply.stop!r}, and not 'refusal'")
    _expect(reply.withheld, "the reply is not marked as withheld: see `draft.reply`")


async def check_not_streamed(probe: Probe) -> None:
    """Check that a whole body in place of a stream is an answer."""
    outcome = await probe.call("not_streamed")
    _expect(outcome.text == "Hello, world", f"the text is {outcome.text!r}, and not 'Hello, world'")


# -- answers that are none


def _expect_retry(error: ModelError, *kinds: ErrorKind) -> None:
    _expect(error.kind != "bug", f"what a server sends is never a bug: {error}")
    _expect(RULES[error.kind].retried, f"{error.kind!r} is not tried again; use one of {kinds}")


async def check_cut(probe: Probe) -> None:
    """Check that a stream that ends before the provider's mark of completion is no answer."""
    error = (await probe.call("cut")).failure()
    _expect(
        error.kind == "stream_cut", f"the kind is {error.kind!r}, and not 'stream_cut': see `draft.complete`"
    )
    _expect(error.usage is not None, "the error has no usage: a call that was answered is paid for")


async def check_broken_connection(probe: Probe) -> None:
    """Check that a connection that breaks in the middle is no answer."""
    error = (await probe.call("broken_connection")).failure()
    _expect(error.kind == "stream_cut", f"the kind is {error.kind!r}, and not 'stream_cut'")


async def check_unknown_stop(probe: Probe) -> None:
    """Check that a stop reason that nobody knows is tried again, and ends no run as finished."""
    _expect_retry((await probe.call("unknown_stop")).failure(), "malformed_reply", "stream_cut")


async def check_error_in_stream(probe: Probe) -> None:
    """Check that an error of an unknown type within a stream is tried again, and its words are kept."""
    error = (await probe.call("error_in_stream")).failure()
    _expect_retry(error, "stream_cut", "overloaded")
    _expect("upstream connect error" in str(error), f"the words of the error are lost: {error}")


async def check_garbled(probe: Probe) -> None:
    """Check that an answer that cannot be read is tried again."""
    _expect_retry((await probe.call("garbled")).failure(), "malformed_reply")


async def check_silence(probe: Probe) -> None:
    """Check that a call takes no longer than `ModelConfig.timeout`."""
    error = (await probe.call("silence", probe.with_timeout(2))).failure()
    _expect(error.kind == "timeout", f"the kind is {error.kind!r}, and not 'timeout': see `CallDeadline`")


async def check_early_close(probe: Probe) -> None:
    """Check that closing the stream closes the connection: a person who stops a run stops the bill too."""
    await probe.close_early("silence")


# -- refusals

KINDS: Final[dict[str, ErrorKind]] = {
    "authentication": "authentication",
    "payment": "payment",
    "not_found": "not_found",
    "bad_request": "bad_request",
    "overflow": "context_overflow",
    "filtered": "filtered",
    "too_large": "too_large",
    "rate_limited": "rate_limited",
    "overloaded": "overloaded",
    "proxy_page": "overloaded",
}
"""Kind of the error for each refusal. The words of each hold "the reason"."""


def _refusal(shape: str, kind: ErrorKind) -> Check:
    async def check(probe: Probe) -> None:
        error = (await probe.call(shape)).failure()
        _expect(
            error.kind == kind, f"the kind is {error.kind!r}, and not {kind!r}: see `draft.provider_error`"
        )
        _expect("the reason" in str(error), f"the words of the refusal are lost: {error}")
        _expect(error.usage is None, "a refused call costs nothing")

    check.__doc__ = f"Check that a refusal of the kind {kind!r} is known as such, and its words are kept."
    return check


async def check_retry_after(probe: Probe) -> None:
    """Check that the delay that the provider asks for is passed on."""
    error = (await probe.call("rate_limited")).failure()
    expected = timedelta(seconds=7)
    _expect(
        error.retry_after == expected,
        f"the delay is {error.retry_after}, and not {expected}: see `parse_retry_after`",
    )


async def check_absurd_delay(probe: Probe) -> None:
    """Check that a delay to the year 9999 is none that a run waits for."""
    error = (await probe.call("absurd_delay")).failure()
    delay = error.retry_after
    _expect(delay is None or delay <= LONGEST_DELAY, f"the delay is {delay}: see `parse_retry_after`")


PROTOCOL: Final[dict[str, Check]] = {
    "settings": check_settings,
    "plain_call": check_plain_call,
    "calls_together": check_calls_together,
    "any_transcript": check_any_transcript,
}
"""Checks that need no recorded answers."""
WIRE: Final[dict[str, Check]] = {
    "text": check_text,
    "usage": check_usage,
    "odd_usage": check_odd_usage,
    "thinking": check_thinking,
    "call": check_call,
    "calls": check_calls,
    "one_index": check_one_index,
    "arguments_as_object": check_arguments_as_object,
    "broken_arguments": check_broken_arguments,
    "max_tokens": check_max_tokens,
    "refusal": check_refusal,
    "not_streamed": check_not_streamed,
    "cut": check_cut,
    "broken_connection": check_broken_connection,
    "unknown_stop": check_unknown_stop,
    "error_in_stream": check_error_in_stream,
    "garbled": check_garbled,
    "silence": check_silence,
    "early_close": check_early_close,
    **{shape: _refusal(shape, kind) for shape, kind in KINDS.items()},
    "retry_after": check_retry_after,
    "absurd_delay": check_absurd_delay,
}
"""Checks that need recorded answers."""
