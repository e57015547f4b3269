"""Streams of every adapter, broken at random: no bug of ours, and no call that the stream did not hold.

The adapters read them in memory, through their own `stream` and, for Bedrock, through botocore's parser: so there is
time for many. `make fuzz-streams` reads 100,000. A failure names the seed: `FUZZ_SEED=... pytest
tests/fuzz/test_any_stream.py` reads that stream alone.
"""

import asyncio
import json
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress
from itertools import accumulate, pairwise
from random import Random
from typing import Any, cast

import httpx2
import pytest
from botocore.eventstream import EventStream
from botocore.parsers import create_parser
from pydantic_core import from_json

from perdure.activities.providers import anthropic, bedrock, openai
from perdure.activities.providers.bedrock import BedrockModel
from perdure.activities.providers.http import HttpModel
from perdure.errors import ModelError
from perdure.messages import ToolCall
from perdure.model import Model, ModelEvent, ModelRequest, Reply
from tests.unit.providers.dialects import DIALECTS, Dialect, StubCall, StubReply
from tests.unit.providers.more_dialects import GEMINI, RESPONSES

from .depth import TIMES
from .junk import GONE, ODD_NUMBERS, ODD_TEXTS, deep, mutated
from .test_streams import Damage, check_error, check_events

COUNT = int(os.environ.get("FUZZ_COUNT", "500")) * TIMES
"""Streams of each adapter."""
FIRST = int(os.environ["FUZZ_SEED"]) if "FUZZ_SEED" in os.environ else 0
SEEDS = range(FIRST, FIRST + (1 if "FUZZ_SEED" in os.environ else COUNT))
NEWS: list[Any] = [
    *(*ODD_TEXTS, *ODD_NUMBERS, GONE, None, True, [], {}, [[]], {"text": "x"}, deep(50), deep(190)),
    *(
        "{}",
        '{"query": "x"}',
        '{"a": 1}{"b": 2}',
        '"',
        "0",
        0,
        1,
        "a",
        "search",
        "tool_use",
        "end_turn",
        "stop",
    ),
    *(
        {"type": "tool_use", "id": "z", "name": "rm", "input": {"path": "/"}},
        {"name": "rm", "arguments": {"path": "/"}},
    ),
]


READ = (*DIALECTS, GEMINI, RESPONSES)
"""Dialects of the adapters that fold streams; Azure's is the one of OpenAI."""


class _Answer:
    """Answer of a library, whose body is in memory."""

    status_code = 200

    def __init__(self, packets: Sequence[bytes]) -> None:
        self.packets = packets
        self.response = self
        self.headers = httpx2.Headers({"request-id": "req-1"})
        self.status_code = 200

    async def aiter_bytes(self) -> AsyncIterator[bytes]:
        for packet in self.packets:
            yield packet

    async def close(self) -> None:
        pass

    aclose = close


class _Raw:
    """Raw stream of botocore, whose body is in memory."""

    def __init__(self, packets: Sequence[bytes]) -> None:
        self.packets = packets

    def stream(self) -> Iterator[bytes]:
        return iter(self.packets)

    def close(self) -> None:
        pass

    shutdown = close


Feed = Callable[[Sequence[bytes]], None]


@pytest.fixture(params=READ, ids=lambda dialect: dialect.name)
def reader(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, own_environment: None
) -> tuple[Dialect, Model, Feed]:
    """Each adapter, with the way to feed it."""
    dialect: Dialect = request.param
    model: Model = dialect.make("http://127.0.0.1:1")
    body: list[bytes] = []
    if isinstance(model, BedrockModel):
        client = model._clients.get("eu-central-1", None, dialect.config().timeout)
        shape = client.meta.service_model.operation_model("ConverseStream").output_shape.members["stream"]
        rest: Any = create_parser("rest-json")
        parser = rest._event_stream_parser

        def opened(*_: object, **__: object) -> Any:
            stream: EventStream[Any] = EventStream(_Raw([*body]), shape, parser, "ConverseStream")
            return {"stream": stream, "ResponseMetadata": {"RequestId": "req-1", "HTTPHeaders": {}}}

        monkeypatch.setattr(bedrock, "_open_stream", opened)
    else:

        async def send(*_: object, **__: object) -> Any:
            return _Answer([*body])

        if isinstance(model, HttpModel):
            monkeypatch.setattr(model._client, "send", send)

        for module in (anthropic, openai):
            monkeypatch.setattr(module, "_send", send)

    def feed(packets: Sequence[bytes]) -> None:
        body[:] = packets

    return dialect, model, feed


def _said(rng: Random) -> StubReply:
    names = ("search", "fetch", "pay")
    values: list[Any] = [
        {},
        {"query": "x"},
        {"n": [1, {"m": None}]},
        {"text": 'ä🙂\u2028 \\ " }'},
        {"query": ""},
    ]
    made: list[StubCall] = []
    for n in range(rng.choice((0, 0, 1, 1, 2, 3))):
        written = json.dumps(rng.choice(values), ensure_ascii=rng.random() < 0.5)
        cuts = sorted(rng.sample(range(len(written) + 1), min(rng.randrange(4), len(written))))
        ends = [*cuts, len(written)]
        pieces = [written[a:b] for a, b in zip([0, *cuts], ends, strict=True)]
        made.append(
            StubCall(id=rng.choice(("", "a", f"call-{n}")), name=rng.choice(names), pieces=tuple(pieces))
        )
    return StubReply(
        thinking=rng.choice(("", "", "hm")),
        text=rng.choice(((), ("Hello", ", ", "wörld 🙂"), ("x",))),
        calls=tuple(made),
        stop=rng.choice((None, None, None, "length", "max_tokens", "abort", "tea_break", "SAFETY")),
    )


def _damaged(rng: Random, frames: list[bytes]) -> list[bytes]:
    for _ in range(rng.choice((1, 1, 2, 3, 5))):
        how = rng.choice(
            ("drop", "twice", "last", "end", "cut", "flip", "insert", *["json"] * 8, "swap", "index")
        )
        if how == "swap":
            rng.shuffle(frames) if rng.random() < 0.2 else frames.reverse() if rng.random() < 0.1 else None
        elif how == "index":
            frames = [_with_one_index(frame) for frame in frames]
        else:
            new = rng.randbytes(rng.randrange(30)) if how == "insert" else rng.choice(NEWS)
            with suppress(RecursionError):
                frames = Damage(how, rng.randrange(10**6), new).to(frames)
    return frames


def _with_one_index(frame: bytes) -> bytes:
    """Return the frame of a server that gives everything the index 0."""
    for n in (b"1", b"2", b"3", b"4"):
        frame = frame.replace(b'"index": ' + n, b'"index": 0')
    return frame


def _packets(rng: Random, frames: Sequence[bytes]) -> list[bytes]:
    """Return the bytes as the network cuts them."""
    if rng.random() < 0.5:
        return [frame for frame in frames if frame]
    body = b"".join(frames)
    sizes = accumulate(rng.choice((1, 3, 50, 1000, 16384)) for _ in range(10_000))
    cuts = [0]
    for end in sizes:
        cuts.append(min(end, len(body)))
        if end >= len(body):
            break
    return [body[a:b] for a, b in pairwise(cuts)]


# -- the calls that a stream holds, read by other code than the adapters'


def _values(frames: Sequence[bytes]) -> Iterator[Any]:
    for line in b"".join(frames).replace(b"\r", b"\n").split(b"\n"):
        with suppress(ValueError, RecursionError):
            yield json.loads(line.partition(b":")[2] if line.startswith(b"data") else line)
    for frame in frames:
        with suppress(ValueError, struct.error, RecursionError):
            size = struct.unpack(">I", frame[4:8])[0]
            yield json.loads(frame[12 + size : -4])


def _arguments(value: Any) -> Iterator[Any]:
    """Yield what stands where a dialect has arguments, or pieces of them."""
    if isinstance(value, list):
        for each in cast("Sequence[Any]", value):
            yield from _arguments(each)
    elif isinstance(value, dict):
        for key, each in cast("dict[str, Any]", value).items():
            if key in ("partial_json", "input", "arguments", "args", "delta"):
                yield each
            yield from _arguments(each)


def _may_hold(frames: Sequence[bytes], call: ToolCall) -> bool:
    """Return whether the stream holds these arguments: whole, or in pieces that follow each other in it."""
    wanted = json.dumps(call.arguments, sort_keys=True)
    pieces = [piece for value in _values(frames) for piece in _arguments(value)]
    return not call.arguments or wanted in {json.dumps(value, sort_keys=True) for value in _written(pieces)}


def _written(pieces: Sequence[Any]) -> Iterator[Any]:
    """Yield the JSON values that pieces give together; pieces of other calls may stand between them."""
    begun: list[str] = []
    for piece in pieces:
        if not isinstance(piece, str):
            yield piece
            continue
        grown = [text + piece for text in begun]
        for text in (piece, *grown):
            with suppress(ValueError, RecursionError):
                yield json.loads(text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace"))
        begun = [text for text in (*begun, *grown, piece) if _may_begin(text)][-20_000:]


def _may_begin(text: str) -> bool:
    """Return whether the text may be the beginning of a JSON object."""
    if text.lstrip()[:1] != "{" or len(text) > 6000:
        return False
    try:
        from_json(text.encode(errors="replace"), allow_partial="trailing-strings")
    except ValueError:
        return False
    return True


def _check_calls(frames: Sequence[bytes], reply: Reply) -> None:
    calls = [part for part in reply.parts if isinstance(part, ToolCall) and part.problem is None]
    text = b"".join(frames).decode(errors="replace")
    for call in calls:
        assert _may_hold(frames, call), f"the stream has no arguments {call.arguments}"
        is_as_sent = json.dumps(call.name)[1:-1] in text or call.name in text
        assert is_as_sent or "\ufffd" in call.name, "half a character of a name is replaced, and nothing else"
    ids = [(call.id, call.name, json.dumps(call.arguments, sort_keys=True)) for call in calls if call.id]
    assert len(ids) == len(set(ids)), "a call is made once"


async def _read(model: Model, request: ModelRequest) -> list[ModelEvent] | ModelError:
    try:
        async with asyncio.timeout(30):
            return [event async for event in model.stream(request)]
    except ModelError as error:
        return error


async def test_any_stream_is_read_or_retried(reader: tuple[Dialect, Model, Feed]) -> None:
    """A broken stream ends as a reply, or as an error that is none of ours.

    No tool gets arguments that the stream did not hold.
    """
    dialect, model, feed = reader
    request = ModelRequest(config=dialect.config())
    for seed in SEEDS:
        rng = Random(f"{dialect.name} {seed}")
        said = _said(rng)
        frames = _damaged(rng, [*dialect.open(said), *dialect.close(said)])
        feed(_packets(rng, frames))
        try:
            got = await _read(model, request)
            if isinstance(got, ModelError):
                assert got.kind != "bug", str(got)
                check_error(got)
            else:
                check_events(got)
                assert isinstance(got[-1], Reply)
                _check_calls(frames, got[-1])
        except Exception as error:
            raise AssertionError(
                f"FUZZ_SEED={seed} -k {dialect.name}: {type(error).__name__}: {error}"
            ) from error


def test_oracle_notices_a_wrong_call() -> None:
    """The check is worth something: it refuses arguments that no stream of its dialect holds."""
    for dialect in READ:
        frames = dialect.open(StubReply(calls=(StubCall(id="a"),)))
        assert _may_hold(frames, ToolCall(id="a", name="search", arguments={"query": "x"}))
        assert not _may_hold(frames, ToolCall(id="a", name="search", arguments={"query": "y"}))
        assert not _may_hold(frames, ToolCall(id="a", name="search", arguments={"x": 1}))


def test_mutation_reaches_every_place() -> None:
    value = {"a": [1, {"b": 2}]}
    assert {json.dumps(mutated(value, pick, "x")) for pick in range(5)} == {
        '"x"',
        '{"a": "x"}',
        '{"a": ["x", {"b": 2}]}',
        '{"a": [1, "x"]}',
        '{"a": [1, {"b": "x"}]}',
    }
