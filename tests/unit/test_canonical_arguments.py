"""Canonical arguments: policy, digest, person and tool see one value, however it was written."""

from datetime import date
from decimal import Decimal
from ipaddress import IPv6Address
from typing import Annotated, Any, cast
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, SecretStr, StringConstraints

from perdure.activities.content.reply import check_reply
from perdure.agent import Agent
from perdure.messages import ToolCall, Usage
from perdure.model import Reply
from perdure.policy import Policy, Rule
from perdure.schema import canonical_arguments, problem_with
from perdure.tools import Tool, tool
from perdure.wire.requests import ApprovalDecision
from perdure.wire.results import Approval
from perdure.wire.spec import AgentSpec, ToolSpec
from perdure.workflows.engine.approvals import digest_of
from perdure.workflows.engine.commands import CallTools
from perdure.workflows.engine.decide import decide
from perdure.workflows.engine.events import ApprovalResolved
from perdure.workflows.engine.fold import fold
from perdure.workflows.engine.state import AgentState
from perdure.workflows.inputs import check_decision

from .runs import answered, begun, spec_of, status_report, tool_spec


class Line(BaseModel):
    account: int
    note: str = ""


@tool(name="pay", approval=True, resource="account")
async def pay(account: int = 7, urgent: bool = False, lines: list[Line] | None = None, note: str = "") -> str:
    """Pay."""
    return ""


SECRET = SecretStr("s3cret")
CARRIERS = ["function", "remote", "agent"]
DEFAULTS: dict[str, Any] = {"urgent": False, "lines": None, "note": ""}
SPELLINGS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"account": 7}, {"account": 7}),
    ({"account": 7.0}, {"account": 7}),
    ({"account": "7"}, {"account": 7}),
    ({}, {"account": 7}),
    ({"account": 7, "urgent": "true"}, {"account": 7, "urgent": True}),
    ({"account": 7, "note": "Ⅶ Straße 🙂 7.0"}, {"account": 7, "note": "Ⅶ Straße 🙂 7.0"}),
    ({"account": 7, "note": "7"}, {"account": 7, "note": "7"}),
    (
        {"account": 7.0, "lines": [{"account": "8", "note": "x"}, {"account": 9.0}]},
        {"account": 7, "lines": [{"account": 8, "note": "x"}, {"account": 9}]},
    ),
]


def carrier_spec(kind: str, **changed: Any) -> AgentSpec:
    settings: dict[str, Any] = {"kind": kind, "approval": True, "resource": "account"}
    if kind == "agent":
        settings["agent"] = "payer"
    return spec_of(tools=(tool_spec("pay", input_schema=pay.input_schema, **settings),), **changed)


def read_call(spec: AgentSpec, kind: str, arguments: dict[str, Any], own: Tool = pay) -> ToolCall:
    """The call as it stands in the transcript."""
    agent = Agent(name="a", model="scripted:x", tools=[own]) if kind == "function" else None
    call = ToolCall(id="", name="pay", arguments=arguments)
    reply = Reply(parts=(call,), stop="tool_calls", usage=Usage())
    [part] = check_reply(reply, 1, spec, [one.definition for one in spec.tools], agent).parts
    assert isinstance(part, ToolCall)
    return part


def open_call(kind: str, arguments: dict[str, Any], policy: Policy | None = None) -> AgentState:
    spec = carrier_spec(kind, policy=policy)
    read = read_call(spec, kind, arguments)
    assert read.problem is None
    return answered(begun(tools=spec.tools, policy=policy), read)


@pytest.mark.parametrize("kind", CARRIERS)
@pytest.mark.parametrize(("written", "canonical"), SPELLINGS)
def test_everybody_sees_one_value(kind: str, written: dict[str, Any], canonical: dict[str, Any]) -> None:
    """Transcript, person, digest and tool see the canonical values, defaults too; the policy matches them."""
    canonical = DEFAULTS | canonical
    state = open_call(kind, written)
    [shown] = status_report(state).waiting
    assert isinstance(shown, Approval)
    assert shown.arguments == canonical
    assert repr(shown.arguments["account"]) == "7"
    again = open_call(kind, canonical)
    assert shown.digest == digest_of(again, again.step.calls[0])
    assert state.messages[-1].tool_calls[0].arguments == canonical
    started = decide(fold(state, ApprovalResolved(decision=ApprovalDecision(call_id="call-1-1", allow=True))))
    assert isinstance(started, CallTools)
    assert started.calls[0].call.arguments == canonical
    denying = Policy(rules=(Rule(verdict="deny", resource="7"), Rule(verdict="allow")))
    denied = open_call(kind, written, denying).messages[-1].tool_results[0]
    assert "does not allow" in denied.text


@pytest.mark.parametrize("kind", CARRIERS)
@pytest.mark.parametrize(("written", "canonical"), SPELLINGS)
def test_edit_is_canonical_too(kind: str, written: dict[str, Any], canonical: dict[str, Any]) -> None:
    canonical = DEFAULTS | canonical
    edit = ApprovalDecision(call_id="call-1-1", allow=True, arguments=written)
    state = open_call(kind, {"account": 1})
    check_decision(state, edit)
    [call] = fold(state, ApprovalResolved(decision=edit)).step.calls
    assert call.call.arguments == canonical
    denying = Policy(rules=(Rule(verdict="deny", resource="7"), Rule(verdict="ask")))
    with pytest.raises(Exception, match="the policy does not allow 'pay' with these arguments"):
        check_decision(open_call(kind, {"account": 1}, denying), edit)


@pytest.mark.parametrize("kind", CARRIERS)
@pytest.mark.parametrize("wrong", ["seven", 7.5, None, [7], "nan"])
def test_wrong_value_is_a_problem(kind: str, wrong: Any) -> None:
    """A value that is no spelling of an integer stays as it was written, with its problem."""
    call = read_call(carrier_spec(kind), kind, {"account": wrong})
    assert call.problem is not None
    assert call.arguments == {"account": wrong}


def test_validators_shape_the_resource() -> None:
    """The policy sees what the function's validators make of a text."""

    async def take(account: Annotated[str, StringConstraints(strip_whitespace=True, to_upper=True)]) -> str:
        """Take."""
        return ""

    own = tool(name="pay", resource="account")(take)
    spec = Agent(name="a", model="scripted:x", tools=[own]).spec()
    assert read_call(spec, "function", {"account": " w9"}, own).arguments == {"account": "W9"}


def test_unstable_resource_is_refused() -> None:
    """A validator that changes its own result would show the policy another value than the tool."""

    async def take(account: Annotated[str, AfterValidator(lambda text: f"W{text}")]) -> str:
        """Take."""
        return ""

    own = tool(name="pay", resource="account")(take)
    spec = Agent(name="a", model="scripted:x", tools=[own]).spec()
    problem = read_call(spec, "function", {"account": "9"}, own).problem
    assert problem is not None
    assert "no stable form" in problem


def test_validators_refuse_where_the_reply_is_read() -> None:
    def even(number: int) -> int:
        if number % 2:
            raise ValueError("must be even")
        return number

    async def take(account: Annotated[int, AfterValidator(even)]) -> str:
        """Take."""
        return ""

    own = tool(name="pay")(take)
    spec = Agent(name="a", model="scripted:x", tools=[own]).spec()
    assert "must be even" in str(read_call(spec, "function", {"account": 3}, own).problem)
    # Another version of the function, as during a deploy, is not asked.
    assert read_call(carrier_spec("function"), "function", {"account": 3}, own).problem is None


def test_secret_is_kept() -> None:
    """A value whose JSON form hides it stays as it was written, and the others are canonical."""

    async def take(account: int, key: SecretStr) -> str:
        """Take."""
        return ""

    own = tool(name="pay")(take)
    spec = Agent(name="a", model="scripted:x", tools=[own]).spec()
    read = read_call(spec, "function", {"account": 7.0, "key": "s3cret"}, own)
    assert read.arguments == {"account": 7, "key": "s3cret"}


def test_unjudged_defaults_are_not_written() -> None:
    """Where nobody judges a call, only a missing resource gets its default: history does not grow."""
    free = spec_of(tools=(tool_spec("pay", input_schema=pay.input_schema, resource="account"),))
    read = read_call(free, "function", {"account": 7, "lines": [{"account": 1}]})
    assert read.arguments == {"account": 7, "lines": [{"account": 1}]}


def test_defaults_that_cannot_be_given_stay_out() -> None:
    """A secret, and a default of another type than its parameter, are not written for a person to see."""

    async def take(account: int, limit: int = cast("int", None), key: SecretStr = SECRET) -> str:
        """Take."""
        return ""

    own = tool(name="pay", approval=True)(take)
    spec = Agent(name="a", model="scripted:x", tools=[own]).spec()
    assert read_call(spec, "function", {"account": 7}, own).arguments == {"account": 7}


Order = Annotated[str, StringConstraints(strip_whitespace=True, to_upper=True)]
DENIED: list[tuple[Any, str, Any]] = [
    (Order, "W9*", " w9123\n"),
    (list[Order], "W9*", ["W1", " w9123"]),
    (list[list[Order]], "W9*", [["W1"], [["w9"]][0]]),
    (UUID, "12345678-*", "{12345678-1234-5678-1234-567812345678}"),
    (UUID, "12345678-*", "urn:uuid:12345678-1234-5678-1234-567812345678"),
    (UUID, "abcdef12-*", "ABCDEF12-1234-5678-1234-567812345678"),
    (int, "9", "9.0"),
    (Decimal, "9.50", " 9.50"),
    (date, "2026-11-30", "2026-11-30T00:00:00"),
    (IPv6Address, "::1", "0:0:0:0:0:0:0:1"),
    (dict[str, str], '{"a":"W9","b":"x"}', {"b": "x", "a": "W9"}),
]


@pytest.mark.parametrize(("hint", "pattern", "written"), DENIED, ids=lambda value: str(value)[:40])
def test_policy_sees_what_the_tool_will_see(hint: Any, pattern: str, written: Any) -> None:
    """No spelling of a denied resource passes: the call is denied, or its arguments are refused."""

    async def take(account: Any) -> str:
        """Take."""
        return ""

    take.__annotations__["account"] = hint
    own = tool(name="pay", resource="account")(take)
    policy = Policy(rules=(Rule(verdict="deny", resource=pattern), Rule(verdict="allow")))
    spec = Agent(name="a", model="scripted:x", tools=[own], policy=policy).spec()
    read = read_call(spec, "function", {"account": written}, own)
    state = answered(begun(tools=spec.tools, policy=policy), read)
    [result] = state.messages[-1].tool_results
    assert result.is_error
    assert "does not allow" in result.text or "do not fit" in result.text


SCHEMAS: list[tuple[Any, Any, Any]] = [
    ({"type": ["integer", "null"]}, "7", 7),
    ({"type": ["integer", "string"]}, "7", "7"),
    ({"anyOf": [{"type": "string"}, {"type": "integer"}]}, "7", "7"),
    ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "7", 7),
    ({"oneOf": [{"$ref": "#/$defs/n"}, {"type": "null"}]}, 7.0, 7),
    ({"$ref": "#/$defs/n"}, "-3", -3),
    ({"$ref": "#/$defs/loop"}, "x", "x"),
    ({"$ref": "other.json"}, "7", "7"),
    ({"allOf": [{"type": "integer"}, {"minimum": 3}]}, "7", 7),
    ({"type": "number"}, "7.50", 7.5),
    ({"type": "number"}, 7.0, 7),
    ({"type": "number"}, "nan", "nan"),
    ({"type": "boolean"}, "false", False),
    ({"type": "string"}, 7, 7),
    (
        {"type": "array", "prefixItems": [{"type": "integer"}], "items": {"type": "boolean"}},
        ["1", "on"],
        [1, True],
    ),
    ({"type": "object", "additionalProperties": {"type": "integer"}}, {"a": "1"}, {"a": 1}),
    ({}, {"a": [7.0, "7"]}, {"a": [7, "7"]}),
    (True, 7.0, 7),
    ({"type": "integer"}, 1e300, 1e300),
]


@pytest.mark.parametrize(("schema", "written", "canonical"), SCHEMAS)
def test_schema_decides(schema: Any, written: Any, canonical: Any) -> None:
    root = {
        "type": "object",
        "properties": {"value": schema},
        "$defs": {"n": {"type": "integer"}, "loop": {"$ref": "#/$defs/loop"}},
    }
    read = canonical_arguments({"value": written}, root)["value"]
    assert (read, type(read)) == (canonical, type(canonical))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text("7.0 truenl", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=6,
)


@given(VALUES, st.sampled_from([schema for schema, _, _ in SCHEMAS]))
def test_canonical_is_stable(value: Any, schema: Any) -> None:
    """Canonical arguments stay as they are, and what fitted still fits."""
    root = {
        "type": "object",
        "properties": {"value": schema},
        "$defs": {"n": {"type": "integer"}, "loop": {"type": "string"}},
    }
    once = canonical_arguments({"value": value}, root)
    assert repr(canonical_arguments(once, root)) == repr(once)
    if schema != {"$ref": "other.json"} and problem_with({"value": value}, root) is None:
        assert problem_with(once, root) is None


def test_deep_argument_keeps_others_canonical() -> None:
    deep: Any = "7"
    for _ in range(3_000):
        deep = [deep]
    root = {"type": "object", "properties": {"account": {"type": "integer"}}}
    assert canonical_arguments({"deep": deep, "account": "7"}, root)["account"] == 7


def test_stand_in_has_its_own_default() -> None:
    """The policy judges a stand-in by its own resource."""
    schema = {"type": "object", "properties": {"path": {"type": "string", "default": "/etc/x"}}}
    spec: ToolSpec = tool_spec("read", input_schema=schema, resource="path")
    assert canonical_arguments({}, spec.input_schema, spec.resource) == {"path": "/etc/x"}
