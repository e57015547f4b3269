"""What a provider's filter has refused is not shown again; everything else is."""

import pytest

from perdure.messages import Image, Message, Part, ReplyMeta, Text, ToolCall, ToolResult
from perdure.withheld import without_withheld


def _reply(text: str, *, withheld: bool = False, calls: tuple[ToolCall, ...] = ()) -> Message:
    meta = ReplyMeta(step=1, model="x:y", stop="refusal" if withheld else "end_turn", withheld=withheld)
    return Message(role="assistant", parts=[Text(text=text), *calls], meta=meta)


def _shown(*messages: Message) -> list[str]:
    return [
        "..." if "filter" in message.text and "secret" not in message.text else message.text
        for message in without_withheld(messages)
    ]


def test_refused_question_and_answer_are_in_words() -> None:
    hello, hi = Message.user("hello"), _reply("hi")
    refused = (
        Message.user("secret one"),
        Message.user("secret two"),
        _reply("half of a secret", withheld=True),
    )
    assert _shown(hello, hi, *refused, Message.user("there?")) == [
        "hello",
        "hi",
        "...",
        "...",
        "...",
        "there?",
    ]


def test_conversation_without_refusals_stays_as_it_is() -> None:
    messages = (Message.user("hello"), _reply("hi"), Message.user("filter"))
    assert without_withheld(messages) == messages


def test_each_further_refusal_takes_in_twice_as_much() -> None:
    """What the filter means may be older than the newest message. In the end nothing of it is left."""
    pairs = [part for n in range(6) for part in (Message.user(f"secret {n}"), _reply(f"secret answer {n}"))]
    refusals: list[Message] = []
    left: list[int] = []
    for n in range(4):
        refusals += [Message.user(f"secret again {n}"), _reply("no", withheld=True)]
        left.append(sum(text != "..." for text in _shown(*pairs, *refusals)))
    assert left == [12, 10, 6, 0]


def test_reply_that_stands_ends_the_row() -> None:
    messages = (
        *(Message.user("a"), _reply("b"), Message.user("secret"), _reply("no", withheld=True)),
        *(Message.user("c"), _reply("d"), Message.user("secret"), _reply("no", withheld=True)),
    )
    assert _shown(*messages) == ["a", "b", "...", "...", "c", "d", "...", "..."]


@pytest.mark.parametrize("content", [[Text(text="secret")], [Image(data="aGk=")]])
def test_calls_keep_their_results(content: list[Text | Image]) -> None:
    """Ids stay together: a provider refuses a call without its result."""
    call = ToolCall(id="call-1-1", name="read", arguments={"page": "secret"})
    cut = ToolCall(id="call-2-1", name="read", arguments={"_raw": "secret"}, problem="cut")
    result = ToolResult(call_id="call-1-1", name="read", content=[*content], spilled="blob")
    answered = ToolResult(call_id="call-2-1", name="read", content=[Text(text="secret")])
    messages = (
        *(Message.user("read"), _reply("", calls=(call,)), Message(role="tool", parts=[result])),
        *(_reply("", withheld=True, calls=(cut,)), Message(role="tool", parts=[answered])),
    )
    shown = without_withheld(messages)
    ids = [part.id if isinstance(part, ToolCall) else part.call_id for m in shown for part in _calls(m)]
    assert ids == ["call-1-1", "call-1-1", "call-2-1", "call-2-1"]
    assert shown[1] == messages[1]
    assert "secret" not in str(shown[2]) + str(shown[3])
    assert not any(message.has_attachments or message.blobs for message in shown)


def _calls(message: Message) -> list[ToolCall | ToolResult]:
    parts: list[Part] = message.parts
    return [part for part in parts if isinstance(part, ToolCall | ToolResult)]
