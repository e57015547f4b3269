"""What people and programs send to a run: it is taken, or refused in words. Never anything else."""

import json
from contextlib import suppress
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from pydantic_core import from_json
from temporalio.exceptions import ApplicationError

from perdure.messages import Message
from perdure.wire.names import INVALID_REQUEST
from perdure.wire.requests import TranscriptQuery
from perdure.workflows.engine.pages import page
from perdure.workflows.engine.remote import remote_result
from perdure.workflows.inputs import (
    check_decision,
    decision_of,
    listener,
    message_of,
    request_of,
    run_below,
    run_that_waits,
    session_request_of,
)
from perdure.workflows.questions import Incoming, delivery_of, said_of, sent_message
from tests.unit.runs import answered, begun, call

from . import junk
from .depth import examples

RUN = {
    "agent": "a",
    "prompt": "go",
    "user": "lee",
    "roles": ["r"],
    "limits": {"steps": 3, "cost_usd": 0.5, "per_tool": {"x": 1}, "timeout": "PT1H"},
    "context": {"order": {"id": 7}},
    "stream": False,
}
PARTS = [
    {"kind": "text", "text": "look"},
    {"kind": "image", "media_type": "image/png", "data": "QQ=="},
    {"kind": "document", "name": "d", "blob": "0" * 64},
]
SESSION = {"agent": "a", "limits": {"steps": 1}, "session_limits": {"tool_calls": 0}, "max_idle": "PT1H"}
SAY = {"id": "m", "text": PARTS, "when_busy": "steer", "call_id": "call-1-1", "run_id": "r"}
SEND = {"id": "m", "text": PARTS, "call_id": "r/~a-1/call-1-1"}
DECISION = {"call_id": "call-1-1", "allow": True, "arguments": {"cents": 5}, "digest": "d", "run_id": "r"}


def mutations(*valid: Any) -> st.SearchStrategy[Any]:
    """Something near to these, or anything at all."""
    near = st.builds(junk.mutated, st.sampled_from(valid), st.integers(0, 99), junk.news)
    return near | near | near | junk.anything


def delivered(raw: Any) -> Any:
    """As it comes over the wire, if it can: half characters never do."""
    try:
        return from_json(json.dumps(raw))
    except ValueError:
        return None


def taken(read: Any, raw: Any) -> Any:
    """What is made of it; None when it is refused as it should be."""
    try:
        return read(raw)
    except ApplicationError as error:
        assert error.type == INVALID_REQUEST
        assert error.non_retryable
        assert len(error.message) < 6000, "a refusal is short, whatever was given"
        error.message.encode()
        return None


@examples(300)
@given(mutations(RUN, {**RUN, "prompt": PARTS}))
def test_run_request_is_explained_or_serializable(raw: Any) -> None:
    """A run request is rejected with an explanation, or can be serialized."""
    request = taken(request_of, raw)
    if request is not None:
        written = json.dumps(request.to_json())
        assert json.dumps(request_of(json.loads(written)).to_json()) == written
        json.dumps(request.to_json(), ensure_ascii=False).encode()


@examples(150)
@given(mutations(SESSION))
def test_session_request_is_explained_or_serializable(raw: Any) -> None:
    """A session request is rejected with an explanation, or can be serialized."""
    request = taken(session_request_of, raw)
    if request is not None:
        json.dumps(request.to_json(), ensure_ascii=False).encode()


def _said_message(raw: Any) -> Incoming:
    return said_of(raw)[1]


@examples(300)
@given(mutations(SAY, SEND, "go on", {"text": "go on"}, {"run_id": "r/~a-1", "text": PARTS}, PARTS))
def test_input_is_explained_or_a_message(raw: Any) -> None:
    """Input is rejected with an explanation, or becomes a message."""
    state = answered(begun(), call("ask_person", question="Which?"))
    for read in (_said_message, partial(sent_message, update_id="u"), message_of):
        made = taken(read, delivered(raw))
        if isinstance(made, Incoming):
            taken(partial(delivery_of, state), made)
            made = made.message
        if isinstance(made, Message):
            assert made.role == "user"
            Message.model_validate_json(made.model_dump_json())


@examples(200)
@given(mutations(DECISION))
def test_approval_is_explained_or_matches_call(raw: Any) -> None:
    """An approval decision is rejected with an explanation, or is about a waiting call."""
    state = answered(begun(), call("pay", cents=5))
    decision = taken(decision_of, delivered(raw))
    if decision is None:
        return
    taken(partial(check_decision, state), decision)
    taken(partial(run_that_waits, state), decision)
    taken(partial(run_below, state), decision.run_id or "")
    taken(listener, state)


@examples(150)
@given(mutations({"start": 1, "stop": 3}), st.integers(), st.none() | st.integers())
def test_any_transcript_range_is_answered(raw: Any, start: int, stop: int | None) -> None:
    """Any range of a transcript can be requested."""
    messages = [Message.user(f"message {n}") for n in range(5)]
    wanted = [TranscriptQuery(start=start, stop=stop)]
    with suppress(ValidationError):
        wanted.append(TranscriptQuery.model_validate(raw))
    for want in wanted:
        got = page(messages, want)
        assert got.length == 5
        first = max(want.start, 0)
        assert got.messages == messages[first : first + len(got.messages)]


@examples(200)
@given(junk.anything, st.integers(1, 100))
def test_remote_result_is_serializable(value: Any, most: int) -> None:
    """Whatever a remote tool returns becomes a result that can be serialized."""
    asked = call("far")
    result = remote_result(value, asked, most, 1)
    assert type(result).model_validate_json(result.model_dump_json()) == result
    assert len(result.text.encode()) <= most + 100
