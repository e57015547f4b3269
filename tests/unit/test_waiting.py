"""The call that a person names is found among all that wait in a tree."""

from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

import pytest
from temporalio.client import WorkflowExecutionDescription, WorkflowExecutionStatus

from perdure.errors import InvalidRequest
from perdure.starter.client.causes import match_cause
from perdure.starter.client.inspect import reconcile
from perdure.starter.client.waiting import choose_approval
from perdure.wire.results import Approval, NodeStatus, RunStatus, Waiting

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def approval(*path: str, call_id: str = "call-1-1") -> Approval:
    return Approval(
        call_id=call_id,
        tool="pay",
        arguments={"sum": 1},
        digest="d",
        since=NOW,
        run_id="/~".join(["r", *path]),
        path=list(path),
    )


def choose(waiting: list[Waiting], run_id: str | None = None, call: str | None = None) -> Approval:
    status = RunStatus(agent="a", status="waiting_approval", doing="acting", waiting=waiting)
    return choose_approval("r", status, call, run_id)


@pytest.mark.parametrize(
    ("run_id", "call"),
    [
        ("r/~a-2", None),
        ("a-2", "call-1-1"),
        (None, "r/~a-2/call-1-1"),
        (None, "a-2/call-1-1"),
    ],
)
def test_call_below_is_run_and_id(run_id: str | None, call: str | None) -> None:
    assert choose([approval("a-1"), approval("a-2")], run_id, call).run_id == "r/~a-2"


def test_bare_id_means_own_call() -> None:
    assert choose([approval("a-1"), approval()], None, "call-1-1").path == []
    assert choose([approval("a-1")], None, "call-1-1").path == ["a-1"]


def test_ambiguous_call_is_rejected_with_list() -> None:
    with pytest.raises(InvalidRequest) as caught:
        choose([approval("a-1"), approval("a-2"), approval("b-1", call_id="call-9-9")], None, "call-1-1")
    assert str(caught.value) == (
        "2 calls wait; name the call as CALL or RUN_ID/CALL; these wait: "
        "r/~a-1/call-1-1: a-1: pay(sum=1); r/~a-2/call-1-1: a-2: pay(sum=1)"
    )
    with pytest.raises(InvalidRequest, match="no call 'b-1/call-1-1' waits; these wait: r/~a-1/call-1-1: "):
        choose([approval("a-1")], "b-1", "call-1-1")
    with pytest.raises(InvalidRequest, match="no call of run 'r' waits for approval: the run is acting"):
        choose([])


def test_cause_matches_by_prefix() -> None:
    assert match_cause("auth") == match_cause("authentication") == "authentication"
    assert match_cause("timeout") == "timeout"
    for word in ("", "t", "nonsense"):
        with pytest.raises(InvalidRequest, match=f"no cause {word!r}; the causes are rate_limited, "):
            match_cause(word)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        ("RUNNING", "waiting_approval"),
        ("CONTINUED_AS_NEW", "waiting_approval"),
        ("TERMINATED", "failed"),
        ("TIMED_OUT", "failed"),
        ("CANCELED", "cancelled"),
        ("COMPLETED", "completed"),
    ],
)
def test_server_corrects_status_of_ended_run(state: str, told: str) -> None:
    nodes = [NodeStatus(key="b-1", node="b", state="done"), NodeStatus(key="a-1", node="a")]
    status = RunStatus(agent="a", status="waiting_approval", doing="", nodes=nodes, waiting=[approval("a-1")])
    described: Any = SimpleNamespace(status=WorkflowExecutionStatus[state])
    found = reconcile(status, cast("WorkflowExecutionDescription", described))
    assert found.status == told
    is_open = told == "waiting_approval"
    assert [node.state for node in found.nodes] == ["done", "running" if is_open else "cancelled"]
    assert len(found.waiting) == is_open
