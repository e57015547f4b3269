"""Providers' streams, broken in every way: one whole reply at the end, or an error of a kind."""

import asyncio
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any, get_args

from hypothesis import given
from hypothesis import strategies as st

from perdure.activities.content.reply import check_reply
from perdure.agent import Agent
from perdure.errors import ModelError
from perdure.messages import Message, ReplyMeta
from perdure.model import ModelEvent, Reply
from perdure.prices import shipped_prices
from perdure.wire.effects import ModelOutcome, tail_digest
from tests.unit.providers.conftest import Wire
from tests.unit.providers.dialects import StubCall, StubReply
from tests.unit.providers.server import Answer

from . import junk
from .depth import examples

SAYINGS = [
    StubReply(text=("Hello", ", ", "wörld 🙂")),
    StubReply(
        thinking="hm", text=("On it.",), calls=(StubCall(id="a"), StubCall(id="b", pieces=('{"n"', ": [1]}")))
    ),
    StubReply(redacted="QQ==", calls=(StubCall(id="c", pieces=()),)),
    StubReply(text=("cut",), stop="max_tokens"),
]
MOST_TOKENS = 10**12
"""No provider counts more in one call."""


@dataclass(frozen=True)
class Damage:
    """What is done to the frames of an answer."""

    how: str
    pick: int
    new: Any = None

    def to(self, frames: list[bytes]) -> list[bytes]:
        at = self.pick % len(frames) if frames else 0
        one = frames[at] if frames else b""
        byte = self.pick % len(one) if one else 0
        match self.how:
            case "drop":
                put = []
            case "twice":
                put = [one, one]
            case "last":
                return [*frames[:at], *frames[at + 1 :], one]
            case "end":
                return frames[:at]
            case "cut":
                return [*frames[:at], one[:byte]]
            case "flip":
                put = (
                    [one[:byte] + bytes([one[byte] ^ (1 + self.pick % 255)]) + one[byte + 1 :]] if one else []
                )
            case "insert":
                put = [bytes(self.new), one]
            case _:
                try:
                    put = [_with_json(one, self.pick, self.new)]
                except (ValueError, struct.error):  # broken already
                    put = [one]
        return [*frames[:at], *put, *frames[at + 1 :]]


def _with_json(frame: bytes, pick: int, new: Any) -> bytes:
    """The frame with another value somewhere in its JSON."""
    if frame.startswith((b"event:", b"data: {")):
        head, _, rest = frame.partition(b"data: ")
        return head + b"data: " + _changed(rest.strip(), pick, new) + b"\n\n"
    if frame.startswith(b"data:"):
        return frame
    head_size = struct.unpack(">I", frame[4:8])[0]
    head, payload = frame[12 : 12 + head_size], _changed(frame[12 + head_size : -4], pick, new)
    prelude = struct.pack(">II", 16 + len(head) + len(payload), len(head))
    message = prelude + struct.pack(">I", zlib.crc32(prelude)) + head + payload
    return message + struct.pack(">I", zlib.crc32(message))


def _changed(data: bytes, pick: int, new: Any) -> bytes:
    value = json.loads(data)
    return json.dumps(junk.mutated(value, pick, new)).encode()


damages = st.lists(
    st.one_of(
        st.builds(
            Damage, st.sampled_from(["drop", "twice", "last", "end", "cut", "flip"]), st.integers(0, 10**6)
        ),
        st.builds(Damage, st.just("insert"), st.integers(0, 10**6), st.binary(max_size=30)),
        *[st.builds(Damage, st.just("json"), st.integers(0, 10**6), junk.news)] * 3,
    ),
    min_size=1,
    max_size=3,
)


async def heard(wire: Wire, answer: Answer) -> list[ModelEvent] | ModelError:
    wire.server.script(answer)
    try:
        async with asyncio.timeout(10):
            return [event async for event in wire.model.stream(wire.request())]
    except ModelError as error:
        return error


def check_error(error: ModelError) -> None:
    assert "unforeseen" not in str(error), "what a provider says is never taken for a bug of ours"
    # The activity shortens them, once secrets are masked.
    assert len(str(error)) < 21_000
    usage = error.usage
    assert usage is None or 0 <= usage.total_tokens <= MOST_TOKENS


def check_events(events: list[ModelEvent]) -> None:
    assert all(isinstance(event, get_args(ModelEvent)) for event in events)
    assert [event for event in events if isinstance(event, Reply)] == [events[-1]]
    reply = events[-1]
    assert isinstance(reply, Reply)
    assert reply.usage.total_tokens <= MOST_TOKENS
    agent = Agent(name="a", model="scripted:x")
    read = check_reply(reply, 1, agent.spec(), (), agent)
    price = shipped_prices().entries[0].price
    meta = ReplyMeta(
        step=1,
        model="m",
        usage=reply.usage,
        cost_microusd=price.cost_microusd(reply.usage),
        request_id=reply.request_id,
    )
    outcome = ModelOutcome(message=Message(role="assistant", parts=read.parts, meta=meta), stop=reply.stop)
    again = ModelOutcome.model_validate_json(outcome.model_dump_json())
    assert tail_digest([again.message]) == tail_digest([outcome.message])


@examples(60)
@given(said=st.sampled_from(SAYINGS), damage=damages, end=st.sampled_from(["whole", "whole", "cut"]))
async def test_broken_stream_is_reply_or_error(
    wire: Wire, said: StubReply, damage: list[Damage], end: Any
) -> None:
    """A broken stream gives a complete reply, or an error of a known kind."""
    frames = [*wire.dialect.open(said), *wire.dialect.close(said)]
    for one in damage:
        frames = one.to(frames)
    headers = {"content-type": wire.dialect.content_type, wire.dialect.id_header: "req-1"}
    got = await heard(wire, Answer(headers=headers, chunks=tuple(one for one in frames if one), end=end))
    if isinstance(got, ModelError):
        check_error(got)
    else:
        check_events(got)


@examples(40)
@given(
    status=st.sampled_from([200, 204, 301, 400, 401, 403, 404, 413, 429, 500, 503, 529, 599]),
    body=st.binary(max_size=60) | junk.anything.map(lambda value: json.dumps(value).encode()),
    kind=st.sampled_from(["application/json", "text/html", "text/event-stream", ""]),
    wait=st.sampled_from(["1", "-1", "1e400", "nan", "soon", "Wed, 21 Oct 2015 07:28:00 GMT", "9" * 400]),
)
async def test_non_stream_is_known_error(wire: Wire, status: int, body: bytes, kind: str, wait: str) -> None:
    """An answer that is no stream gives an error of a known kind."""
    headers = {"content-type": kind, "retry-after": wait}
    got = await heard(wire, Answer(status=status, headers=headers, chunks=(body,) if body else ()))
    if isinstance(got, ModelError):
        check_error(got)
    else:
        check_events(got)
