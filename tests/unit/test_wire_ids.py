"""Ids within a run lead to each other, and fit into Temporal's bound."""

import pytest

from perdure.wire.ids import (
    call_id_of,
    child_key,
    child_run_id,
    has_child_form,
    is_child_of,
    model_call_id,
    parent_id_of,
    step_of,
    tool_call_id,
)


@pytest.mark.parametrize("agent", ["a", "with-dash-9", "v1.2"])
def test_child_key_identifies_its_call(agent: str) -> None:
    call_id = tool_call_id(12, 3)
    key = child_key(agent, call_id)
    assert key == f"{agent}-12-3"
    assert call_id_of(key) == call_id


def test_only_model_call_has_step() -> None:
    assert step_of(model_call_id(7)) == 7
    assert step_of("step-one") is None
    assert step_of(tool_call_id(7, 1)) is None


@pytest.mark.parametrize("parent", ["order-1", "a/b", "é" * 600])
@pytest.mark.parametrize("key", ["researcher-3-1", "draft-2", "draft-2.1"])
def test_child_run_id_is_recognised(parent: str, key: str) -> None:
    run_id = child_run_id(parent, key)
    assert len(run_id.encode()) <= 1000
    assert is_child_of(parent, run_id)
    assert not is_child_of("somebody-else", run_id)
    assert has_child_form(run_id)
    if len(parent) < 600:
        assert parent_id_of(run_id) == parent


def test_shortened_ids_of_different_parents_differ() -> None:
    first, second = ("x" * 800 + end for end in ("1", "2"))
    assert child_run_id(first * 2, "a-1") != child_run_id(second * 2, "a-1")


@pytest.mark.parametrize("own", ["order-1/notes", "order-1/", "order-1-1", "order-1/item-1-1"])
def test_chosen_id_is_no_child(own: str) -> None:
    assert not is_child_of("order-1", own)
    assert not has_child_form(own)
