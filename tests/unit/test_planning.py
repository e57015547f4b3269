"""Plans: what a model may write down, and how it and people see it."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.planning import (
    MOST_CHARACTERS,
    MOST_ITEMS,
    PLAN_TOOL,
    plan_checklist,
    plan_of,
    plan_receipt,
    plan_reminder,
)
from perdure.schema import check_schema, problem_with
from perdure.wire.results import PlanItem

STATES: Any = ["pending", "in_progress", "done", "dropped"]
TRIP = (
    PlanItem(text="find a train", state="done"),
    PlanItem(text="book it", state="in_progress"),
    PlanItem(text="find a hotel"),
    PlanItem(text="rent a car", state="dropped"),
)
ITEMS = st.lists(
    st.fixed_dictionaries(
        {"text": st.just(" ") | st.text(min_size=1, max_size=60), "state": st.sampled_from(STATES)}
    ),
    max_size=MOST_ITEMS,
)


def test_plan_is_complete_and_ordered() -> None:
    given_by_it = {"items": [item.model_dump() for item in TRIP]}
    assert plan_of(given_by_it) == TRIP
    assert {type(item) for item in plan_of(given_by_it)} == {PlanItem}


def test_several_items_may_be_in_progress() -> None:
    """Several items may be in progress, and none needs to remain."""
    twice = [{"text": "a", "state": "in_progress"}, {"text": "b", "state": "in_progress"}]
    assert [item.state for item in plan_of({"items": twice})] == ["in_progress", "in_progress"]
    assert plan_of({"items": []}) == ()


def test_item_without_state_is_pending() -> None:
    assert plan_of({"items": [{"text": "a"}]}) == (PlanItem(text="a", state="pending"),)


def test_multi_line_text_becomes_one_line() -> None:
    assert plan_of({"items": [{"text": " buy\n- [x] bread \t now "}]})[0].text == "buy - [x] bread now"


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ({}, "items: Field required"),
        ({"items": "a, b"}, "items: Input should be a valid list"),
        ({"items": ["a"]}, "items.0: Input should be a valid dictionary"),
        ({"items": [], "plan": 1}, "plan: Extra inputs are not permitted"),
        ({"items": [{"text": "a"}, {"text": " \n "}]}, "items.1.text: .*at least 1 character"),
        ({"items": [{"state": "done"}]}, "items.0.text: Field required"),
        ({"items": [{"text": 3}]}, "items.0.text: Input should be a valid string"),
        ({"items": [{"text": "a", "state": "finished"}]}, "items.0.state: .*'pending'.*got 'finished'"),
        ({"items": [{"text": "a", "by": "lee"}]}, "items.0.by: Extra inputs"),
        ({"items": [{"text": "a"}] * (MOST_ITEMS + 1)}, "items: .*at most 50 items.*not 51"),
        ({"items": [{"text": "a" * (MOST_CHARACTERS + 1)}]}, "items.0.text: .*at most 500 characters"),
    ],
)
def test_invalid_plan_is_explained(arguments: dict[str, Any], why: str) -> None:
    """An invalid plan is rejected, and the model gets an explanation."""
    with pytest.raises(ValueError, match=f"the plan was not changed: {why}"):
        plan_of(arguments)


def test_longest_allowed_plan_is_accepted() -> None:
    longest = {"items": [{"text": "a" * MOST_CHARACTERS, "state": "done"}] * MOST_ITEMS}
    assert len(plan_of(longest)) == MOST_ITEMS
    assert problem_with(longest, PLAN_TOOL.input_schema) is None


def test_people_see_a_checklist() -> None:
    assert plan_checklist(TRIP) == "- [x] find a train\n- [~] book it\n- [ ] find a hotel\n- [-] rent a car"


def test_reminder_has_plan_and_legend() -> None:
    """The reminder has the plan and the meaning of its marks."""
    first, *rest = plan_reminder(TRIP).split("\n")
    assert "update_plan" in first
    assert all(mark in first for mark in ("[x] done", "[~] in progress", "[ ] pending", "[-] dropped"))
    assert "\n".join(rest) == plan_checklist(TRIP)


def test_of_no_plan_nothing_is_shown() -> None:
    assert (plan_checklist(()), plan_reminder(()), plan_receipt(())) == ("", "", "The plan is empty.")


@pytest.mark.parametrize(
    ("states", "said"),
    [
        (["done", "done", "in_progress", "pending", "pending"], "2 of 5 done; next: item 2"),
        (["done", "pending", "in_progress"], "1 of 3 done; next: item 2"),
        (["done", "pending", "dropped"], "1 of 2 done, 1 dropped; next: item 1"),
        (["done", "done"], "2 of 2 done; nothing is left"),
        (["dropped"], "0 of 0 done, 1 dropped; nothing is left"),
    ],
)
def test_receipt_has_progress_and_next_item(states: list[Any], said: str) -> None:
    """The receipt has the progress and the next item."""
    items = [PlanItem(text=f"item {n}", state=state) for n, state in enumerate(states)]
    assert plan_receipt(items) == said


def test_tool_schema_is_valid() -> None:
    check_schema(PLAN_TOOL.input_schema, "plan")
    assert PLAN_TOOL.name == "update_plan"
    states = PLAN_TOOL.input_schema["properties"]["items"]["items"]["properties"]["state"]["enum"]
    assert states == STATES


@given(ITEMS)
def test_schema_match_is_a_plan(items: list[dict[str, Any]]) -> None:
    """A value that fits the schema is a plan, unless a text is blank."""
    arguments = {"items": items}
    assert problem_with(arguments, PLAN_TOOL.input_schema) is None
    if all(item["text"].strip() for item in items):
        plan = plan_of(arguments)
        assert [item.state for item in plan] == [item["state"] for item in items]
        assert len(plan_checklist(plan).split("\n")) == max(len(plan), 1)
    else:
        with pytest.raises(ValueError, match="at least 1 character"):
            plan_of(arguments)


@given(st.dictionaries(st.sampled_from(["items", "x"]), st.recursive(st.none() | st.text(), st.lists)))
def test_any_input_is_plan_or_error(arguments: dict[str, Any]) -> None:
    """Whatever a model gives is a plan or a ValueError."""
    problem = ""
    try:
        assert len(plan_of(arguments)) <= MOST_ITEMS
    except ValueError as error:
        problem = str(error)
    assert len(problem) < 5_000
