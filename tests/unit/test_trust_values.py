"""Values of strangers, before they reach a run: addresses, headers, grants, nesting."""

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import ValidationError
from temporalio.api.common.v1 import Payload
from temporalio.exceptions import ApplicationError

from perdure import Agent, ModelConfig
from perdure.activities.content.reply import check_reply
from perdure.activities.providers.addresses import known_addresses
from perdure.errors import ModelError
from perdure.messages import ToolCall, Usage
from perdure.model import Reply
from perdure.wire.plain import MOST_NESTING, problem_as_json
from perdure.wire.tree import Amount, BudgetRequest, ChildInput, Grant, Lease, Lineage
from perdure.workers.observe.headers import readable
from perdure.workflows.engine.tree import apply_grant, mark_requested, tree_of
from perdure.workflows.inputs import decision_of, request_of

GOOD = "https://gateway.example/v1"


def at(address: Any, provider: str = "openai") -> ModelConfig:
    return ModelConfig(name=f"{provider}:m", options={} if address is None else {"base_url": address})


KNOWN = known_addresses(
    [Agent(name="a", model=at(GOOD)), Agent(name="b", model=at("http://gpu:8000/v1", "vllm"))],
    ["https://old.example"],
)


@pytest.mark.parametrize(
    ("config", "known"),
    [
        (at(None), True),
        (at(GOOD), True),
        (at("https://gateway.example:443/other/path"), True),
        (at("https://GATEWAY.example"), True),
        (at("https://old.example/v2", "anthropic"), True),
        (at("http://gpu:8000", "vllm"), True),
        (at("https://evil.example/v1"), False),
        (at("http://gateway.example/v1"), False),  # the key would cross the wire in the clear
        (at("https://gateway.example:8443/v1"), False),
        (at("https://gateway.example@evil.example/v1"), False),
        (at("https://gateway.example.evil.example/v1"), False),
        (at(GOOD, "anthropic"), False),  # named for another provider, whose key is another
        (at("http://gpu:8000"), False),
        (at("file:///etc/passwd"), False),
        (at("https://"), False),
        (at(7), False),
        (at("https://gateway.example:no/"), False),
    ],
)
def test_key_goes_to_named_hosts_only(config: ModelConfig, known: bool) -> None:
    """A key goes to the hosts that an agent names for its provider, and to those of the settings."""
    if known:
        KNOWN.check(config)
        return
    with pytest.raises(ModelError) as refused:
        KNOWN.check(config)
    assert refused.value.kind == "authentication"


@pytest.mark.parametrize(
    ("encoding", "data", "kept"),
    [
        (b"json/plain", b'{"traceparent": "00-1-2-01"}', True),
        (b"json/plain", b'{"traceparent": 5}', False),
        (b"json/plain", b"[]", False),
        (b"json/plain", b'"\\ud83d', False),
        (b"no/such", b"{}", False),
        (b"\xff", b"{}", False),
    ],
)
def test_unreadable_trace_context_is_dropped(encoding: bytes, data: bytes, kept: bool) -> None:
    headers = {"other": Payload(), "_tracer-data": Payload(metadata={"encoding": encoding}, data=data)}
    assert set(readable(headers)) == ({"other", "_tracer-data"} if kept else {"other"})


def leased() -> ChildInput:
    lineage = Lineage(parent="p", key="a-1", spec_digest="", as_of=datetime(2026, 11, 30, tzinfo=UTC))
    return ChildInput(lineage=lineage, lease=Lease(lender="p", amount=Amount(cost_microusd=100)))


def test_forged_grant_gives_nothing() -> None:
    """A grant counts while the run asks, and gives at most what it has asked for."""
    tree = tree_of(leased())
    forged = Grant(amount=Amount(cost_microusd=10**9, tool_calls=5))
    assert apply_grant(tree, forged) == tree
    assert apply_grant(tree, Grant()) == tree
    asking = mark_requested(
        tree, BudgetRequest(minimum=Amount(cost_microusd=10), preferred=Amount(cost_microusd=50))
    )
    assert apply_grant(asking, forged).lease.amount == Amount(cost_microusd=150)
    assert apply_grant(apply_grant(asking, forged), forged).lease.amount == Amount(cost_microusd=150)
    assert apply_grant(tree_of(None), forged) == tree_of(None)


def test_amounts_are_bounded() -> None:
    """Less than nothing is refused. More than can be is the largest amount: sums are made where nothing may fail."""
    with pytest.raises(ValidationError):
        Amount(cost_microusd=-1)
    assert [Amount(cost_microusd=amount).cost_microusd for amount in (2**60, 10**400)] == [2**53] * 2


def nested(depth: int) -> Any:
    value: Any = 1
    for level in range(depth):
        value = [value] if level % 2 else {"k": value}
    return value


@pytest.mark.parametrize("value", [nested(MOST_NESTING), "text", {"n": 10**300}, None, [1.5, True]])
def test_plain_values_pass(value: Any) -> None:
    assert problem_as_json(value) is None


def _edited(arguments: Any) -> str:
    try:
        decision_of({"call_id": "call-1-1", "allow": True, "arguments": arguments})
    except ApplicationError as error:
        return error.message
    return ""


def _called(arguments: Any) -> str:
    reply = Reply(
        parts=(ToolCall(id="x", name="work", arguments=arguments),), stop="tool_calls", usage=Usage()
    )
    [part] = check_reply(reply, 1, Agent(name="a", model="scripted:x").spec(), [], None).parts
    assert isinstance(part, ToolCall)
    return part.problem or ""


def _requested(context: Any) -> str:
    try:
        request_of({"agent": "a", "prompt": "go", "context": context})
    except ApplicationError as error:
        return error.message
    return ""


@pytest.mark.parametrize("door", [_edited, _called, _requested])
def test_doors_agree_on_nesting(door: Callable[[Any], str]) -> None:
    """Arguments of a model, of a person's edit and of a request may nest equally deep, with all that is around them."""
    at_most, around = MOST_NESTING, 1 if door is _requested else 0
    assert "nested deeper" not in door({"k": nested(at_most - 1 - around)})
    assert f"nested deeper than {MOST_NESTING} levels" in door({"k": nested(at_most - around)})


@pytest.mark.parametrize(
    "value",
    [
        nested(MOST_NESTING + 1),
        nested(500),
        nested(100_000),
        "\ud83d",
        [float("nan")],
        10**5000,
        {"x": object()},
        {"k": [b"\xff"]},
        {"\ud83d": 1},
    ],
    ids=["101", "500", "100000", "half", "nan", "long", "object", "bytes", "half key"],
)
def test_deep_values_are_refused(value: Any) -> None:
    """What could not be written as JSON and read again is refused, in words."""
    assert problem_as_json(value)
