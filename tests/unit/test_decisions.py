"""Decisions of people in the pure core: each is about one approval, and is made once."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from perdure.fallbacks import ToolFallback
from perdure.wire.effects import CheckedCall, HookOutcome
from perdure.wire.requests import ApprovalDecision
from perdure.workflows.engine.approvals import MadeDecision, digest_of, made_decision
from perdure.workflows.engine.carry import HistoryFormat, pack, unpack
from perdure.workflows.engine.events import (
    ApprovalResolved,
    CallReturned,
    CallsStarted,
    HooksAnswered,
    HooksStarted,
)
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.state import AgentState
from perdure.workflows.inputs import check_decision, check_repeated, decision_of

from .runs import NOW, answered, begun, call, program_of, result, spec_of, status_report, tool_spec


def _paying(id: str = "r", **changed: Any) -> AgentState:  # noqa: A002
    return answered(replace(begun(**changed), id=id), call("pay", cents=100))


def _digest(state: AgentState) -> str:
    return digest_of(state, state.step.calls[0])


def test_digest_is_unique_to_run_and_call() -> None:
    """The same payment in another run, in a rerun of the same id, or later in the run has another digest."""
    first = _paying()
    rerun = replace(first, started_at=first.started_at + timedelta(seconds=1))
    paid = fold(first, ApprovalResolved(decision=ApprovalDecision(call_id="call-1-1", allow=True)))
    paid = fold(fold(paid, CallsStarted(ids=("call-1-1",))), CallReturned(result=result("call-1-1", "pay")))
    later = answered(paid, call("pay", cents=100))
    digests = [_digest(state) for state in (first, _paying("other"), rerun, later)]
    assert len(set(digests)) == 4
    assert _digest(_paying()) == digests[0]


def test_approval_survives_continue_as_new() -> None:
    """The same call waits under the same id and digest in the next execution."""
    state = _paying()
    carried, *chunks = pack(program_of(state), state, HistoryFormat())
    restored, _ = unpack(program_of(state), carried, chunks)
    assert status_report(restored).waiting == status_report(state).waiting


def _decided(allow: bool = True, **more: Any) -> AgentState:
    decision = ApprovalDecision(call_id="call-1-1", allow=allow, by="lee", **more)
    return fold(_paying(), ApprovalResolved(decision=decision, at=NOW))


def _made(state: AgentState, decision: ApprovalDecision) -> MadeDecision:
    made = made_decision(state, decision)
    assert made is not None
    return made


@pytest.mark.parametrize("phase", ["ready", "running", "done"])
@pytest.mark.parametrize("with_digest", [True, False])
def test_repeated_decision_gets_the_first_answer(phase: str, with_digest: bool) -> None:
    """A decision made again says who made it and when, whatever the call does by now."""
    state = _decided()
    again = ApprovalDecision(
        call_id="call-1-1", allow=True, by="kim", digest=_digest(_paying()) if with_digest else None
    )
    if phase != "ready":
        state = fold(state, CallsStarted(ids=("call-1-1",)))
    if phase == "done":
        state = fold(state, CallReturned(result=result("call-1-1", "pay")))
    made = _made(state, again)
    check_repeated(made, again)
    answer = made.answer(repeated=True)
    assert (answer.by, answer.at, answer.repeated) == ("lee", NOW, True)
    assert answer.words == "already approved by lee at 2026-11-20 00:00:00 UTC"


@pytest.mark.parametrize(
    ("first", "second", "why"),
    [
        ({"allow": True}, {"allow": False}, "was approved by lee at .* cannot be changed"),
        ({"allow": False}, {"allow": True}, "was denied by lee at"),
        ({"allow": True}, {"allow": True, "arguments": {"cents": 1}}, "was approved by lee"),
        ({"allow": True, "arguments": {"cents": 1}}, {"allow": True}, "approved with other arguments by lee"),
    ],
)
def test_other_decision_is_refused(first: dict[str, Any], second: dict[str, Any], why: str) -> None:
    """What was decided stays; a contradiction is refused with the first decision."""
    again = ApprovalDecision(call_id="call-1-1", **second)
    with pytest.raises(ApplicationError, match=why):
        check_repeated(_made(_decided(**first), again), again)


def test_decision_in_one_task_counts_before_it_is_folded() -> None:
    """Of two decisions in one workflow task the second is a repeated one."""
    decision = ApprovalDecision(call_id="call-1-1", allow=True, by="lee")
    made = made_decision(_paying(), decision, [ApprovalResolved(decision=decision, at=NOW)])
    assert made is not None
    assert made.record.digest == _digest(_paying())


def test_stand_in_needs_its_own_approval() -> None:
    """A stand-in that a hook asks about is shown by its own name, and the first click does not allow it."""
    tools = (
        tool_spec("pay", kind="remote", approval=True, fallback=ToolFallback(tool="wire")),
        tool_spec("wire", kind="remote"),
    )
    state = replace(begun(tools=tools, hooks=("before_tool",)), id="r")
    state = answered(state, call("pay", cents=100))

    def ask(state: AgentState) -> AgentState:
        state = fold(state, HooksStarted(point="before_tool", ids=("call-1-1",)))
        outcome = HookOutcome(calls=[CheckedCall(call_id="call-1-1", ask="why")])
        return fold(state, HooksAnswered(point="before_tool", outcome=outcome))

    state = ask(state)
    [first] = status_report(state).waiting
    assert first.kind == "approval"
    click = ApprovalDecision(call_id="call-1-1", allow=True, digest=first.digest)
    state = fold(fold(state, ApprovalResolved(decision=click)), CallsStarted(ids=("call-1-1",)))
    failed = result("call-1-1", "pay", "away", is_error=True, error_kind="tool_error")
    state = ask(fold(state, CallReturned(result=failed)))
    [second] = status_report(state).waiting
    assert second.kind == "approval"
    assert (first.tool, second.tool) == ("pay", "wire")
    assert made_decision(state, click) is None
    with pytest.raises(ApplicationError, match="is not what you saw"):
        check_decision(state, click)
    # Without a digest nobody knows which of the two was seen.
    with pytest.raises(ApplicationError, match=r"waits once more, now for 'wire': name the digest"):
        check_decision(state, click.model_copy(update={"digest": None}))
    check_decision(state, click.model_copy(update={"digest": second.digest}))


@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("place", ["cents", "lines.0.cents"])
def test_numbers_that_json_lacks_are_refused(number: float, place: str) -> None:
    """NaN and infinity in edited arguments are refused in words, with their place."""
    arguments: Any = {"cents": number} if place == "cents" else {"lines": [{"cents": number}]}
    with pytest.raises(ApplicationError, match=f"{place} is {number}, and JSON has no such number"):
        decision_of({"call_id": "call-1-1", "allow": True, "arguments": arguments})


def test_call_may_be_named_with_its_run() -> None:
    """`RUN_ID/CALL` is unique in a tree, and is taken as both."""
    decision = decision_of({"call_id": "r/clerk-1-1/call-2-1", "allow": True})
    assert (decision.run_id, decision.call_id) == ("r/clerk-1-1", "call-2-1")
    with pytest.raises(ApplicationError, match="names run 'r', and run_id names 'other'"):
        decision_of({"call_id": "r/call-2-1", "run_id": "other", "allow": True})


def test_plain_spec_has_no_new_fields() -> None:
    """A result without a decision has the bytes that it had before."""
    assert "approval" not in result("call-1-1").model_dump_json()
    assert "approval" not in spec_of(tools=(tool_spec("work"),)).model_dump_json(exclude={"tools"})
