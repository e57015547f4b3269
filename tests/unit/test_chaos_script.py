"""The scripted model derives its next reply from the conversation alone."""

import json
from typing import Any

import pytest

from proofs.chaos.catalogue import Catalogue, GoldCall, Task, Turn
from proofs.chaos.script import Reply, answer, closing, is_parallel, steps

CD = GoldCall("cd", {"folder": "a"}, '{"now": "a"}')
ONE = GoldCall("touch", {"name": "1"}, "None")
TWO = GoldCall("touch", {"name": "2"}, "None")
LS = GoldCall("ls", {}, '["1", "2"]')
TASK = Task(
    id="task_1",
    classes=("Files",),
    turns=(
        Turn("go there", ((CD,), (ONE, TWO))),
        Turn("thanks", ()),
        Turn("and again", ((CD,), (CD,), (LS,))),
    ),
)
CATALOGUE = Catalogue(tasks=(TASK,), tools={}, versions={})


def asked(turn: int) -> list[dict[str, Any]]:
    """A conversation up to the question of that turn, the turns before it without their calls."""
    messages: list[dict[str, Any]] = [{"role": "system", "content": "You help."}]
    for number in range(turn + 1):
        messages.append({"role": "user", "content": TASK.message(number)})
        if number < turn:
            messages.append({"role": "assistant", "content": closing(TASK.id, number)})
    return messages


def called(*calls: tuple[str, dict[str, Any] | str, str]) -> list[dict[str, Any]]:
    """A step: calls, and their results as the model gets them."""
    wanted = [
        {
            "id": f"c{n}",
            "function": {
                "name": name,
                "arguments": arguments if isinstance(arguments, str) else json.dumps(arguments),
            },
        }
        for n, (name, arguments, _) in enumerate(calls)
    ]
    results = [
        {"role": "tool", "tool_call_id": f"c{n}", "content": result} for n, (_, _, result) in enumerate(calls)
    ]
    return [{"role": "assistant", "content": None, "tool_calls": wanted}, *results]


def done(*calls: GoldCall) -> list[dict[str, Any]]:
    return called(*((call.name, call.arguments, json.dumps({"result": call.result})) for call in calls))


def reply_to(messages: list[dict[str, Any]], seed: int = 1) -> Reply:
    return answer(messages, CATALOGUE, seed)


def test_turn_ends_with_closing_words() -> None:
    """A turn begins with its first gold call and ends with its closing words."""
    assert reply_to(asked(0)).calls == (CD,)
    after = reply_to(asked(0) + done(CD) + done(ONE, TWO))
    assert (after.calls, after.text) == ((), closing("task_1", 0))
    assert reply_to(asked(1)) == Reply("task_1", 1, text=closing("task_1", 1))


def test_seed_decides_about_parallel_calls() -> None:
    """The seed decides whether calls whose order makes no difference come in one step."""
    assert {len(reply_to(asked(0) + done(CD), seed).calls) for seed in range(20)} == {1, 2}
    for seed in range(20):
        at_once = is_parallel(TASK, 0, 1, seed)
        assert reply_to(asked(0) + done(CD), seed).calls == ((ONE, TWO) if at_once else (ONE,))
        closing_words, calls = 3, 1 + (1 if at_once else 2) + 3
        assert steps(TASK, seed) == closing_words + calls


def test_equal_calls_are_counted() -> None:
    """Equal calls of a turn are distinguished by their number."""
    assert reply_to(asked(2) + done(CD)).calls == (CD,)
    assert reply_to(asked(2) + done(CD) + done(CD)).calls == (LS,)


@pytest.mark.parametrize(
    "step",
    [
        called(("cd", {"folder": "a"}, "Error: the tools were not reached (after 3 attempts)")),
        called(("cd", '{"folder": "unfin', "Error: the arguments are not valid JSON")),
        called(("cd", {"_raw": "{"}, "Error: the arguments are not valid JSON")),
    ],
)
def test_failed_call_is_repeated(step: list[dict[str, Any]]) -> None:
    """A call that was not carried out is repeated."""
    reply = reply_to(asked(0) + step)
    assert (reply.calls, reply.errors, reply.surprises) == ((CD,), 1, 0)


def test_unexpected_answer_is_counted() -> None:
    """An answer that differs from the gold replay counts as a surprise, and the call is not repeated."""
    step = called(("cd", {"folder": "a"}, json.dumps({"result": '{"error": "no such folder"}'})))
    reply = reply_to(asked(0) + step)
    assert (reply.surprises, reply.errors) == (1, 0)
    assert CD not in reply.calls


def test_conversation_without_task_is_rejected() -> None:
    with pytest.raises(ValueError, match="names no task"):
        reply_to([{"role": "user", "content": "hello"}])
