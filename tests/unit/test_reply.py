"""Reply check: ids of calls, problems of calls and outputs, outputs that round-trip."""

from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, field_validator

from perdure.activities.content.reply import FINAL_ANSWER_TOOL, READ_RESULT_TOOL, CheckedReply, check_reply
from perdure.agent import Agent
from perdure.messages import Message, Opaque, Text, Thinking, ToolCall, Usage
from perdure.model import ModelStop, Reply, ToolDefinition
from perdure.schema import problem_with
from perdure.tools import tool
from perdure.wire.effects import CUT_CALL


class Answer(BaseModel):
    city: str
    days: int = Field(default=1, alias="numberOfDays")

    @field_validator("city")
    @classmethod
    def _somewhere(cls, city: str) -> str:
        if city == "nowhere":
            raise ValueError("must be somewhere")
        return city


class Dated(BaseModel):
    model_config = ConfigDict(strict=True)
    when: datetime


@tool
def work(n: int) -> str:
    """Work."""
    return str(n)


def agent(output_type: Any = None) -> Agent:
    return Agent(name="a", model="scripted:x", tools=[work], output_type=output_type)


def call(name: str, **arguments: Any) -> ToolCall:
    return ToolCall(id="theirs", name=name, arguments=arguments)


def read(one: Agent, *parts: Any, stop: ModelStop = "tool_calls") -> CheckedReply:
    spec = one.spec()
    tools = [item.definition for item in spec.tools]
    if spec.output_schema is not None:
        tools.append(ToolDefinition(name="final_answer", description="", input_schema=spec.output_schema))
    return check_reply(Reply(parts=parts, stop=stop, usage=Usage()), 3, spec, tools, one)


def calls(reading: CheckedReply) -> list[ToolCall]:
    return [part for part in reading.parts if isinstance(part, ToolCall)]


def test_calls_get_our_ids() -> None:
    """Parts keep their order."""
    reading = read(agent(), Thinking(text="hm"), call("work", n=1), Text(text="and"), call("work", n=2))
    assert [part.kind for part in reading.parts] == ["thinking", "tool_call", "text", "tool_call"]
    assert [c.id for c in calls(reading)] == ["call-3-1", "call-3-2"]
    assert [c.problem for c in calls(reading)] == [None, None]


@pytest.mark.parametrize(
    ("parts", "problems"),
    [
        ([Text(text="I"), call("work", n=1)], [CUT_CALL]),
        ([call("work", n=1), call("work", n=2)], [None, CUT_CALL]),
        ([call("work", n=1), Text(text="and th")], [None]),
        ([call("work", n=1), call("work", n=1).model_copy(update={"problem": "not JSON"})], [None, CUT_CALL]),
    ],
)
def test_cut_reply_keeps_its_calls(parts: list[Any], problems: list[str | None]) -> None:
    """The last part of a reply that was cut by its length is what was cut; calls before it are complete."""
    assert [c.problem for c in calls(read(agent(), *parts, stop="max_tokens"))] == problems
    assert [c.problem for c in calls(read(agent(), *parts, stop="tool_calls"))][:1] == [None]


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        (call("nobody"), "there is no tool 'nobody'; the tools are 'work'"),
        (call("work"), "'n' is a required property"),
        (call("work", n="x" * 100_000), "is not of type 'integer'"),
        (call("work", n=1).model_copy(update={"problem": "not JSON"}), "not JSON"),
        (call("work", n="half \ud83d"), "the arguments cannot be read"),
        (call("read_result", result="x"), "there is no tool 'read_result'"),
    ],
)
def test_invalid_call_carries_its_problem(asked: ToolCall, why: str) -> None:
    """The problem is short, because the model reads it."""
    [marked] = calls(read(agent(), asked))
    assert marked.problem is not None
    assert why in marked.problem
    assert len(marked.problem) < 1_200


def test_any_reply_is_json() -> None:
    endless: dict[str, Any] = {}
    for _ in range(2_000):
        endless = {"a": endless}
    parts = [
        Text(text="half \ud83d"),
        Thinking(text="\ude00"),
        call("work", n=endless),
        call("n\ud83d"),
        call("work", n=float("nan")),
        Opaque(provider="p", data={}),
    ]
    reading = read(agent(), *parts)
    assert Message(role="assistant", parts=reading.parts).model_dump_json()
    assert all(c.problem for c in calls(reading))


def test_output_round_trips() -> None:
    """By alias and with its defaults."""
    reading = read(agent(Answer), call("final_answer", city="Bonn", numberOfDays=3))
    assert reading.output == {"city": "Bonn", "numberOfDays": 3}
    assert Answer.model_validate(reading.output).days == 3
    assert read(agent(Answer), call("final_answer", city="Bonn")).output == {
        "city": "Bonn",
        "numberOfDays": 1,
    }


def test_strict_type_reads_json() -> None:
    assert read(agent(Dated), call("final_answer", when="2026-11-20T12:00:00Z")).output is not None


class Priced(BaseModel):
    cents: int

    @field_validator("cents")
    @classmethod
    def _asks_a_service(cls, cents: int) -> int:
        if cents == 1:
            raise RuntimeError("login with password=hunter2hunter2 failed")
        raise ValueError("login with password=hunter2hunter2 failed")


@pytest.mark.parametrize("cents", [1, 2])
def test_checks_of_a_type_leak_no_secret(cents: int) -> None:
    """Errors of a type's own checks, of whatever class, are problems of the answer, with secrets masked."""
    reading = read(agent(Priced), call("final_answer", cents=cents))
    assert reading.output is None
    [final] = calls(reading)
    assert "login with" in str(final.problem)
    assert "hunter2" not in str(reading)


def test_invalid_output_marks_its_call() -> None:
    reading = read(agent(Answer), call("final_answer", city="nowhere"), call("work"))
    assert reading.output is None
    final, other = calls(reading)
    assert final.problem is not None
    assert "must be somewhere" in final.problem
    assert other.problem is not None


def test_first_valid_final_answer_wins() -> None:
    reading = read(agent(Answer), call("final_answer"), call("final_answer", city="Bonn"))
    assert reading.output == {"city": "Bonn", "numberOfDays": 1}
    first, second = calls(reading)
    assert first.problem is not None
    assert second.problem is None


@pytest.mark.parametrize(
    "text",
    ['{"city": "Bonn"}', '```json\n{"city": "Bonn"}\n```', ' ```\n{"city": "Bonn"}```  '],
)
def test_output_as_text(text: str) -> None:
    reading = read(agent(Answer), Text(text=text), stop="end_turn")
    assert reading.output == {"city": "Bonn", "numberOfDays": 1}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("Bonn", "Call 'final_answer' with your answer"),
        ("3", "3 is not of type 'object'"),
        ("", "Call 'final_answer'"),
        ('{"city": ' + "[" * 40_000 + "]" * 40_000 + "}", "'final_answer'"),
        ('{"city": "' + "x" * 50_000 + '", "numberOfDays": "no"}', "does not fit"),
    ],
)
def test_text_without_output_is_a_problem(text: str, why: str) -> None:
    reading = read(agent(Answer), Text(text=text), stop="end_turn")
    assert reading.output is None
    assert reading.problem is not None
    assert why in reading.problem
    assert len(reading.problem) < 2_000


def test_unfinished_reply_is_no_output() -> None:
    assert read(agent(Answer), Text(text="Bonn"), stop="pause_turn").problem is None


@given(st.dictionaries(st.text(max_size=5), st.integers() | st.text(max_size=5), max_size=3))
def test_valid_calls_can_be_bound(arguments: dict[str, Any]) -> None:
    """A call without a problem fits the signature of its tool."""
    asked = ToolCall(id="", name="work", arguments=arguments)
    [marked] = calls(read(agent(), asked))
    if marked.problem is None:
        assert work.signature.bind(marked.arguments).keys() == {"n"}


def test_own_tools_have_reserved_names() -> None:
    assert (FINAL_ANSWER_TOOL.name, READ_RESULT_TOOL.name) == ("final_answer", "read_result")


def test_nan_output_is_refused() -> None:
    class Weighed(BaseModel):
        kilos: float

    reading = read(agent(Weighed), Text(text='{"kilos": NaN}'), stop="end_turn")
    assert reading.output is None
    assert reading.problem is not None


def test_huge_number_passes_multiple_of() -> None:
    assert problem_with(10**400, {"type": "number", "multipleOf": 0.1}) is None
    assert problem_with(3, {"type": "number", "multipleOf": 2}) is not None
