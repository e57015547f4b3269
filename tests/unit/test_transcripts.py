"""Transcript cache: correct whatever is cached, dropped or given up for dead."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from temporalio.client import WorkflowQueryFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.testing import ActivityEnvironment

from perdure.activities.content.transcripts import StaleTranscript, Transcripts
from perdure.messages import Image, Message, ReplyMeta, Text, ToolCall, ToolResult, size_bytes
from perdure.providers.rendering import Turn, render_turn, split_turns
from perdure.wire.effects import ModelInput, TranscriptView, summary_digest, tail_digest
from perdure.wire.requests import TranscriptQuery
from perdure.wire.spec import AgentSpec, ResolvedAgent
from perdure.workflows.engine.pages import page

from .runs import spec_of

T = TypeVar("T")


def answer(text: str, *ids: str) -> Message:
    calls = [ToolCall(id=call_id, name="work") for call_id in ids]
    return Message(role="assistant", parts=[Text(text=text), *calls], meta=ReplyMeta(step=1, model="m"))


def results(*ids: str, text: str = "ok") -> Message:
    made = [ToolResult(call_id=call_id, name="work", content=[Text(text=text)]) for call_id in ids]
    return Message(role="tool", parts=list(made))


@dataclass
class Run:
    """A run that can be asked for its transcript, as its workflow would answer."""

    messages: list[Message] = field(default_factory=list[Message])
    spec: AgentSpec = field(default_factory=spec_of)
    error: Exception | None = None
    asked: list[tuple[int, int | None]] = field(default_factory=list[tuple[int, int | None]])
    summary: str = ""
    most: int = 100
    door: asyncio.Event | None = None
    waiting: asyncio.Event = field(default_factory=asyncio.Event)

    async def query(self, name: str, args: list[Any], **_: Any) -> Any:
        if self.error is not None:
            raise self.error
        if self.door is not None:
            self.waiting.set()
            await self.door.wait()
        if name == "spec":
            return ResolvedAgent(spec=self.spec)
        want: TranscriptQuery = args[0]
        self.asked.append((want.start, want.stop))
        whole = page(self.messages, want, self.summary)
        return whole.model_copy(update={"messages": whole.messages[: self.most]})


@dataclass
class Server:
    """As much of a Temporal client as the cache uses."""

    runs: dict[str, Run]

    def get_workflow_handle(self, workflow_id: str, *, run_id: str | None) -> Run:
        return self.runs[workflow_id]


@dataclass
class Desk:
    """Calls into one cache, each as an attempt of an activity of some run."""

    cache: Transcripts = field(default_factory=Transcripts)
    runs: dict[str, Run] = field(default_factory=dict[str, Run])

    def run(self, name: str = "r", *messages: Message) -> Run:
        return self.runs.setdefault(name, Run(list(messages)))

    async def attempt(
        self, body: Callable[[], Awaitable[T]], *, run: str = "r", attempt: str = "1", part: str = "1"
    ) -> T:
        server: Any = Server(self.runs)
        environment = ActivityEnvironment(server)
        environment.info = replace(
            ActivityEnvironment.default_info(),
            workflow_id=run,
            workflow_run_id=f"{run}-{part}",
            task_token=attempt.encode(),
        )

        async def awaited() -> T:
            return await body()

        async with asyncio.timeout(5):
            return await environment.run(awaited)

    async def get_view(self, want: ModelInput, **who: str) -> tuple[Message, ...]:
        return (await self.attempt(lambda: self.cache.get_view(want), **who)).messages

    async def reply(self, length: int, message: Message, **who: str) -> None:
        async def add() -> None:
            self.cache.add_reply(length, message)

        await self.attempt(add, **who)


def want(
    length: int, *fresh: Message, start: int = 0, pinned: int = 0, tail: str | None = None
) -> ModelInput:
    return ModelInput(
        agent="a",
        spec="h",
        step=1,
        view=TranscriptView(pinned=pinned, start=start, length=length),
        newest=list(fresh),
        tail=tail,
        max_tokens=10,
    )


TASK = Message.user("the task")


async def test_new_messages_need_no_query() -> None:
    desk = Desk()
    run = desk.run("r", TASK)
    assert await desk.get_view(want(1, TASK)) == (TASK,)
    said = answer("a", "call-1-1")
    await desk.reply(1, said)
    assert await desk.get_view(want(3, results("call-1-1"))) == (TASK, said, results("call-1-1"))
    assert run.asked == []


async def test_continued_run_keeps_its_entry() -> None:
    desk = Desk()
    run = desk.run("r", TASK, answer("a", "call-1-1"), results("call-1-1"))
    whole = tuple(run.messages)
    assert await desk.get_view(want(3)) == whole
    asked = len(run.asked)
    following = want(3).model_copy(update={"previous_run_id": "r-1"})
    assert await desk.get_view(following, part="2") == whole
    assert len(run.asked) == asked
    assert await desk.get_view(want(3)) == whole
    assert len(run.asked) > asked, "it was moved, not copied"


async def test_blobs_are_those_in_view() -> None:
    desk = Desk()
    tasks = [Message.user([Image(media_type="image/png", blob=name)]) for name in ("one", "two", "three")]
    desk.run("r", *tasks, Message.user("and now?"))

    async def blobs(want: ModelInput) -> tuple[str, ...]:
        return (await desk.attempt(lambda: desk.cache.get_view(want))).blobs

    assert await blobs(want(4)) == ("one", "two", "three")
    assert await blobs(want(4, start=2)) == ("three",)
    assert await blobs(want(4, start=2, pinned=1)) == ("one", "three")
    assert await blobs(want(2)) == ("one", "two"), "an attempt that looks further back"
    assert await blobs(want(4)) == ("one", "two", "three")


async def test_missing_messages_are_queried_in_pages() -> None:
    desk = Desk()
    run = desk.run("r", *(Message.user(str(n)) for n in range(7)))
    run.most = 3
    assert await desk.get_view(want(7)) == tuple(run.messages)
    assert run.asked == [(0, 7), (3, 7), (6, 7)]
    assert await desk.get_view(want(7)) == tuple(run.messages)
    assert desk.cache.queries == 3


async def test_retry_finds_new_messages() -> None:
    desk = Desk()
    desk.run("r", TASK)
    for attempt in ("1", "2"):
        assert await desk.get_view(want(1, TASK), attempt=attempt) == (TASK,)


async def test_window_shows_pins_and_range() -> None:
    desk = Desk()
    run = desk.run("r", *(Message.user(str(n)) for n in range(9)))
    seen = await desk.get_view(want(9, start=6, pinned=1))
    assert [message.text for message in seen] == ["0", "6", "7", "8"]
    again = await desk.get_view(want(9, start=7, pinned=1))
    assert [message.text for message in again] == ["0", "7", "8"]
    assert run.asked == [(6, 9), (0, 1)], "the task is remembered"


async def test_summary_is_queried_where_it_is_not_known() -> None:
    """A worker that did not write the summary asks the run for it, once; another summary than the named is stale."""
    desk = Desk()
    run = desk.run("r", TASK)
    run.summary = "the user wants bread"
    named = want(1).model_copy(update={"summary": summary_digest(run.summary)})

    async def seen() -> str:
        return (await desk.attempt(lambda: desk.cache.get_view(named))).summary

    assert await seen() == await seen() == "the user wants bread"
    assert run.asked.count((0, 0)) == 1
    named = want(1).model_copy(update={"summary": summary_digest("another")})
    with pytest.raises(StaleTranscript):
        await seen()
    desk.cache.add_summary("another")
    assert await seen() == "another"


async def test_pinned_request_of_any_turn_is_shown() -> None:
    """The pinned request is any message: cached, or queried once; the next pin replaces it."""
    desk = Desk()
    run = desk.run("r", *(Message.user(str(n)) for n in range(9)))
    for pinned, expected in ((4, "3"), (4, "3"), (6, "5"), (8, "7")):
        seen = await desk.get_view(want(9, start=7, pinned=pinned))
        assert [message.text for message in seen] == [expected, "7", "8"]
    assert run.asked == [(7, 9), (3, 4), (5, 6)], "what is cached is not asked for"
    remembered = desk.cache._entries.values()  # pyright: ignore[reportPrivateUsage]
    assert desk.cache._bytes == sum(entry.size_bytes for entry in remembered)  # pyright: ignore[reportPrivateUsage]


async def test_tail_digest_proves_cached_results() -> None:
    """A tool message built from cached results is used only if its digest is the transcript's."""
    for told, queries in (("ok", 0), ("edited", 1)):
        desk = Desk()
        said, made, true = answer("a", "call-1-1"), results("call-1-1"), results("call-1-1", text=told)
        run = desk.run("r", TASK, said, true)
        await desk.get_view(want(1, TASK))
        await desk.reply(1, said)

        async def add(desk: Desk = desk, made: Message = made) -> None:
            desk.cache.add_result(made.tool_results[0])

        await desk.attempt(add)
        assert await desk.get_view(want(3, tail=tail_digest([said, true]))) == (TASK, said, true)
        assert len(run.asked) == queries


async def test_reply_not_taken_is_dropped() -> None:
    """Such as one that said that the context overflows: the step is done again."""
    desk = Desk()
    desk.run("r", TASK)
    await desk.get_view(want(1, TASK))
    await desk.reply(1, answer("overflow"))
    assert await desk.get_view(want(1), attempt="2") == (TASK,)
    real = answer("real", "call-1-1")
    await desk.reply(1, real, attempt="2")
    assert await desk.get_view(want(3, results("call-1-1"))) == (TASK, real, results("call-1-1"))


async def test_abandoned_attempt_adds_no_reply() -> None:
    desk = Desk()
    desk.run("r", TASK)
    await desk.get_view(want(1, TASK), attempt="dead")
    await desk.get_view(want(1, TASK), attempt="alive")
    await desk.reply(1, answer("from the dead"), attempt="dead")
    real = answer("real", "call-1-1")
    await desk.reply(1, real, attempt="alive")
    await desk.reply(1, answer("from the dead"), attempt="dead")
    assert await desk.get_view(want(3, results("call-1-1"))) == (TASK, real, results("call-1-1"))


async def test_least_recently_used_run_is_dropped() -> None:
    size = size_bytes(TASK)
    desk = Desk(Transcripts(capacity_bytes=2 * size))
    for name in ("a", "b", "a", "c"):
        desk.run(name, TASK)
        assert await desk.get_view(want(1), run=name) == (TASK,)
    before = desk.cache.queries
    await desk.get_view(want(1), run="a")
    assert desk.cache.queries == before
    await desk.get_view(want(1), run="b")
    assert desk.cache.queries == before + 1


async def test_unread_results_count_in_the_bound() -> None:
    """Of a run that ends after its tools: by a limit, a stop, a handoff."""
    desk = Desk(Transcripts(capacity_bytes=100_000))
    made = results("call-1-1", text="x" * 10_000).tool_results[0]

    async def add() -> None:
        desk.cache.add_result(made)
        desk.cache.add_result(made)  # another attempt of the same call

    for n in range(50):
        desk.run(f"r{n}", TASK)
        await desk.get_view(want(1, TASK), run=f"r{n}")
        await desk.attempt(add, run=f"r{n}")
    remembered = desk.cache._entries.values()  # pyright: ignore[reportPrivateUsage]
    assert 5 < len(remembered) < 10
    assert desk.cache._bytes == sum(entry.size_bytes for entry in remembered)  # pyright: ignore[reportPrivateUsage]


async def test_entry_dropped_while_filling() -> None:
    """The call that fills it gets all its messages, and the entry counts no more."""
    desk = Desk(Transcripts(capacity_bytes=1))
    slow = desk.run("slow", *(Message.user(str(n)) for n in range(3)))
    slow.door = asyncio.Event()
    reading = asyncio.create_task(desk.get_view(want(3, pinned=1), run="slow"))
    async with asyncio.timeout(5):
        await slow.waiting.wait()
    desk.run("quick", TASK)
    await desk.get_view(want(1), run="quick")
    slow.door.set()
    assert [message.text for message in await reading] == ["0", "0", "1", "2"]
    remembered = desk.cache._entries.values()  # pyright: ignore[reportPrivateUsage]
    assert desk.cache._bytes == sum(entry.size_bytes for entry in remembered)  # pyright: ignore[reportPrivateUsage]
    assert desk.cache._bytes == size_bytes(TASK)  # pyright: ignore[reportPrivateUsage]


async def test_concurrent_attempts_read_the_same() -> None:
    desk = Desk()
    run = desk.run("r", *(Message.user(str(n)) for n in range(5)))
    run.most = 2
    run.door = asyncio.Event()
    both = [asyncio.create_task(desk.get_view(want(5), attempt=name)) for name in ("1", "2")]
    async with asyncio.timeout(5):
        await run.waiting.wait()
    run.door.set()
    assert await asyncio.gather(*both) == [tuple(run.messages)] * 2


async def test_short_transcript_is_stale() -> None:
    desk = Desk()
    desk.run("r", TASK)
    with pytest.raises(StaleTranscript, match="has 1 messages, not 3") as stale:
        await desk.get_view(want(3))
    assert stale.value.non_retryable


async def test_refused_query_is_stale() -> None:
    desk = Desk()
    desk.run().error = WorkflowQueryFailedError("no such query")
    with pytest.raises(StaleTranscript, match="does not answer"):
        await desk.get_view(want(1))


async def test_unreachable_run_is_retried() -> None:
    desk = Desk()
    desk.run().error = RPCError("timed out", RPCStatusCode.DEADLINE_EXCEEDED, b"")
    with pytest.raises(ApplicationError) as failed:
        await desk.get_view(want(1))
    assert (failed.value.type, failed.value.non_retryable) == ("connection", False)
    assert failed.value.details[0].kind == "connection"


async def test_spec_is_queried_once() -> None:
    desk = Desk()
    run = desk.run()
    for _ in range(3):
        assert await desk.attempt(lambda: desk.cache.get_spec(run.spec.full_digest[:16])) == run.spec
    assert desk.cache.queries == 1


def bytes_in(cache: Transcripts) -> int:
    """Return the bytes of all messages in the cache and of what is kept with them, counted anew."""
    entries = cache._entries.values()
    return sum(size_bytes(message) + message.cached_bytes for entry in entries for message in entry.messages)


async def test_bound_counts_what_is_kept() -> None:
    """What was made of a message counts against the bound, and goes with its run."""
    desk = Desk(Transcripts(capacity_bytes=20_000))

    def render(turn: Turn) -> list[str]:
        return [message.model_dump_json() for message in turn]

    for name in "abcde":
        desk.run(
            name, Message.user("x" * 3_000), answer("a", "call-1-1"), results("call-1-1", text="y" * 3_000)
        )

        async def call() -> None:
            view = await desk.cache.get_view(want(3))
            for turn in split_turns(view.messages):
                render_turn(turn, "format", "flags", render)
            desk.cache.count_kept()
            assert all(message.cached_bytes for message in view.messages)

        await desk.attempt(call, run=name)
        assert desk.cache.held_bytes <= desk.cache.capacity_bytes
        assert desk.cache.held_bytes == bytes_in(desk.cache)
    assert await desk.get_view(want(3), run="e")
    assert desk.cache.held_bytes == bytes_in(desk.cache)
