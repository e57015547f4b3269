"""Remembered transcripts: what of an earlier run another run may send."""

from perdure.activities.remember import MOST_REMEMBERED_BYTES, as_memory
from perdure.messages import Message, ReplyMeta, Text, Thinking, ToolCall, ToolResult


def exchange(text: str, number: int = 1) -> list[Message]:
    call = ToolCall(id=f"call-{number}-1", name="work")
    result = ToolResult(call_id=call.id, name="work", content=[Text(text=text)])
    meta = ReplyMeta(step=number, model="scripted:x")
    reply = Message(role="assistant", parts=[Thinking(text="hm", signature="s"), call], meta=meta)
    return [Message.user("go"), reply, Message(role="tool", parts=[result])]


def test_memory_has_ids_and_bills_of_its_own() -> None:
    """Ids name the visit, an id that names one already stays, and neither bill nor reasoning comes along."""
    first = as_memory(exchange("one"), 1)
    both = as_memory([*first, *exchange("two")], 3)
    ids = [call.id for message in both for call in message.tool_calls]
    assert ids == ["v1-call-1-1", "v3-call-1-1"]
    assert ids == [result.call_id for message in both for result in message.tool_results]
    assert all(message.meta is None for message in both)
    assert not any(isinstance(part, Thinking) for message in both for part in message.parts)


def test_late_answers_are_named_by_their_visit() -> None:
    """The name of a late answer names the visit too: names begin anew in each."""
    late = Message(role="user", parts=[Text(text="[worker-1 answered] yes")], answer_of="worker-1")
    first = as_memory([Message.user("go"), late], 1)
    both = as_memory([*first, late], 2)
    assert [message.answer_of for message in both if message.answer_of] == ["v1-worker-1", "v2-worker-1"]


def test_memory_is_bounded_and_whole() -> None:
    """The newest messages are remembered, from a person's on, and the cut is told."""
    long = [message for n in range(1, 8) for message in exchange("x" * (MOST_REMEMBERED_BYTES // 5), n)]
    kept = as_memory(long, 1)
    assert "left out" in kept[0].text
    assert kept[1].role == "user"
    assert kept[-1].tool_results[0].call_id == "v1-call-7-1"
    assert sum(len(message.model_dump_json()) for message in kept) <= MOST_REMEMBERED_BYTES + 1000
    assert as_memory(long[:6], 1)[0].text == "go"
