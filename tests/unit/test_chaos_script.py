"""The scripted model knows from the conversation alone what is next."""

import json
from typing import Any

import pytest

from proofs.chaos.catalogue import Catalogue, GoldCall, Task, Turn
from proofs.chaos.script import Say, answer, closing, steps, together

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
    """One step: calls, and what the model is shown as their results."""
    wanted = [
        {
            "id": f"c{n}",
            "function": {"name": name, "arguments": given if isinstance(given, str) else json.dumps(given)},
        }
        for n, (name, given, _) in enumerate(calls)
    ]
    results = [
        {"role": "tool", "tool_call_id": f"c{n}", "content": said} for n, (_, _, said) in enumerate(calls)
    ]
    return [{"role": "assistant", "content": None, "tool_calls": wanted}, *results]


def done(*calls: GoldCall) -> list[dict[str, Any]]:
    return called(*((call.name, call.arguments, json.dumps({"result": call.result})) for call in calls))


def say(messages: list[dict[str, Any]], seed: int = 1) -> Say:
    return answer(messages, CATALOGUE, seed)


def test_it_begins_with_the_first_call_and_ends_with_words() -> None:
    assert say(asked(0)).calls == (CD,)
    after = say(asked(0) + done(CD) + done(ONE, TWO))
    assert (after.calls, after.text) == ((), closing("task_1", 0))
    assert say(asked(1)) == Say("task_1", 1, text=closing("task_1", 1))


def test_calls_whose_order_makes_no_difference_come_at_once_or_not_by_the_seed() -> None:
    assert {len(say(asked(0) + done(CD), seed).calls) for seed in range(20)} == {1, 2}
    for seed in range(20):
        at_once = together(TASK, 0, 1, seed)
        assert say(asked(0) + done(CD), seed).calls == ((ONE, TWO) if at_once else (ONE,))
        closing_words, calls = 3, 1 + (1 if at_once else 2) + 3
        assert steps(TASK, seed) == closing_words + calls


def test_equal_calls_of_one_turn_are_told_apart_by_their_number() -> None:
    assert say(asked(2) + done(CD)).calls == (CD,)
    assert say(asked(2) + done(CD) + done(CD)).calls == (LS,)


@pytest.mark.parametrize(
    "step",
    [
        called(("cd", {"folder": "a"}, "Error: the tools were not reached (after 3 attempts)")),
        called(("cd", '{"folder": "unfin', "Error: the arguments are not valid JSON")),
        called(("cd", {"_raw": "{"}, "Error: the arguments are not valid JSON")),
    ],
)
def test_what_was_not_done_is_asked_for_again(step: list[dict[str, Any]]) -> None:
    said = say(asked(0) + step)
    assert (said.calls, said.errors, said.surprises) == ((CD,), 1, 0)


def test_an_answer_that_is_not_that_of_the_gold_replay_is_a_surprise() -> None:
    step = called(("cd", {"folder": "a"}, json.dumps({"result": '{"error": "no such folder"}'})))
    said = say(asked(0) + step)
    assert (said.surprises, said.errors) == (1, 0)
    assert CD not in said.calls


def test_a_conversation_that_names_no_task_is_refused() -> None:
    with pytest.raises(ValueError, match="names no task"):
        say([{"role": "user", "content": "hello"}])
