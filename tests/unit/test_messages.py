"""Messages and what else is written down: everything read back is what was written."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from perdure.definitions import explain
from perdure.errors import DefinitionError
from perdure.limits import Limits
from perdure.messages import (
    Document,
    Image,
    Message,
    Opaque,
    Part,
    ReplyMeta,
    Text,
    Thinking,
    ToolCall,
    ToolResult,
    Usage,
    estimated_tokens,
    size_bytes,
)
from perdure.policy import Policy, Rule
from perdure.prices import Entry, Price, PriceTable, load_prices, shipped_prices
from perdure.texts import read_on_call
from perdure.tokens import LARGEST_IMAGE

WORDS = st.text(max_size=20)
NAMES = st.text(min_size=1, max_size=8)
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
ARGUMENTS = st.dictionaries(NAMES, JSON, max_size=3)
COUNT = st.integers(0, 10**9)
USAGE = st.builds(
    Usage,
    input_tokens=COUNT,
    cache_read_tokens=COUNT,
    cache_write_tokens=COUNT,
    output_tokens=COUNT,
    estimated=st.booleans(),
)
MEDIA = st.builds(Image, data=st.none() | NAMES, blob=st.none() | NAMES) | st.builds(
    Document, name=NAMES, data=st.none() | NAMES, blob=st.none() | NAMES
)
RESULT = st.builds(
    ToolResult,
    call_id=NAMES,
    name=NAMES,
    content=st.lists(st.builds(Text, text=WORDS) | MEDIA, max_size=3),
    is_error=st.booleans(),
    spilled=st.none() | NAMES,
    duration_ms=COUNT,
    attempts=COUNT,
)
PART = st.one_of(
    st.builds(Text, text=WORDS),
    st.builds(Thinking, text=WORDS, signature=st.none() | NAMES, redacted=st.none() | NAMES),
    MEDIA,
    st.builds(Opaque, provider=NAMES, data=ARGUMENTS),
    st.builds(ToolCall, id=NAMES, name=NAMES, arguments=ARGUMENTS, problem=st.none() | NAMES),
    RESULT,
)
META = st.builds(
    ReplyMeta,
    step=COUNT,
    model=NAMES,
    usage=USAGE,
    cost_microusd=st.none() | COUNT,
    stop=WORDS,
    duration_ms=COUNT,
    attempts=st.integers(1, 9),
    request_id=st.none() | NAMES,
    errors=st.lists(NAMES, max_size=2),
)
MESSAGE = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "tool"]),
    parts=st.lists(PART, max_size=4),
    meta=st.none() | META,
)


@given(MESSAGE)
def test_message_survives_round_trip(message: Message) -> None:
    assert Message.model_validate_json(message.model_dump_json()) == message
    assert Message.model_validate(message.model_dump(mode="json")) == message


@given(PART)
def test_part_has_its_kind(part: Part) -> None:
    """A part is identified by its kind."""
    adapter: TypeAdapter[Any] = TypeAdapter(Part)
    assert type(adapter.validate_json(adapter.dump_json(part))) is type(part)


@given(USAGE, USAGE, USAGE)
def test_usage_adds_up_in_any_order(one: Usage, two: Usage, three: Usage) -> None:
    assert (one + two) + three == three + (two + one)
    assert (one + two).total_tokens == one.total_tokens + two.total_tokens
    assert one + Usage() == one


def test_missing_fields_are_not_written() -> None:
    written = Message.user("hi").model_dump_json()
    assert written == '{"role":"user","parts":[{"kind":"text","text":"hi"}]}'
    call = ToolCall(id="call-1-1", name="t")
    assert call.model_dump_json() == '{"kind":"tool_call","id":"call-1-1","name":"t","arguments":{}}'
    assert ReplyMeta(step=1, model="m").model_dump(mode="json") == {
        "step": 1,
        "model": "m",
        "usage": {},
        "stop": "",
    }
    assert ReplyMeta(step=1, model="m", attempts=2).model_dump(mode="json")["attempts"] == 2


def test_zero_cost_is_written() -> None:
    """A cost of 0 is written, and an unknown cost is not."""
    assert ReplyMeta(step=1, model="m", cost_microusd=0).model_dump()["cost_microusd"] == 0
    assert "cost_microusd" not in ReplyMeta(step=1, model="m").model_dump()


def test_unknown_field_is_ignored() -> None:
    """A field of a newer writer is ignored."""
    assert Text.model_validate({"kind": "text", "text": "a", "later": 1}) == Text(text="a")


def test_a_message_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        Message.user("a").role = "tool"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


@given(MESSAGE)
def test_sizes_match_written_message(message: Message) -> None:
    assert size_bytes(message) == len(message.model_dump_json().encode())
    assert estimated_tokens(message) > 0


def test_picture_in_result_counts_as_picture() -> None:
    picture = ToolResult(call_id="c", name="n", content=[Image(data="A" * 100_000)])
    message = Message(role="tool", parts=[picture])
    assert LARGEST_IMAGE < estimated_tokens(message) < LARGEST_IMAGE + 100


# Limits.

LIMITS = st.builds(
    Limits,
    steps=st.none() | st.integers(1, 99),
    tool_calls=st.none() | st.integers(0, 99),
    per_tool=st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)),
    per_tool_ends=st.booleans(),
    identical_calls=st.none() | st.integers(1, 9),
    total_tokens=st.none() | st.integers(1, 999),
    cost_usd=st.none() | st.floats(0.01, 9),
)


@given(LIMITS, LIMITS)
def test_a_request_can_only_tighten_limits(mine: Limits, theirs: Limits) -> None:
    both = mine.tightened_by(theirs)
    assert both.per_tool_ends == (mine.per_tool_ends or theirs.per_tool_ends)
    for field in ("steps", "tool_calls", "identical_calls", "total_tokens", "cost_usd"):
        bounds = [b for b in (getattr(mine, field), getattr(theirs, field)) if b is not None]
        assert getattr(both, field) == min(bounds, default=None)
    for name in {*mine.per_tool, *theirs.per_tool}:
        assert both.per_tool[name] == min(
            bound for bound in (mine.per_tool.get(name), theirs.per_tool.get(name)) if bound is not None
        )
    assert both.tightened_by(theirs) == both
    assert mine.tightened_by(None) == mine


def test_omitted_limits_do_not_tighten() -> None:
    """Limits that a request leaves out do not tighten the agent's."""
    assert Limits(steps=90).tightened_by(Limits(tool_calls=1)) == Limits(steps=90, tool_calls=1)


def test_options_are_written_when_set() -> None:
    """A spec of an agent that does not use an option stays as it was; a value that somebody has set is written."""
    assert not {"per_tool_ends", "identical_calls"} & Limits().model_dump().keys()
    said = Limits(per_tool_ends=False, identical_calls=None)
    assert Limits.model_validate_json(said.model_dump_json()).model_fields_set >= said.model_fields_set


@pytest.mark.parametrize("cost", [1e308, float("inf"), float("nan"), 0, -1])
def test_cost_limit_is_amount_of_money(cost: float) -> None:
    with pytest.raises(DefinitionError):
        Limits(cost_usd=cost)


def test_explanation_is_always_short() -> None:
    with pytest.raises(ValidationError) as wrong:
        Limits.model_validate({f"{n}" * 500: "x" * 500 for n in range(500)})
    said = explain(wrong.value)
    assert len(said) < 3_000
    assert said.endswith("and 492 more")


# Policies.


@pytest.mark.parametrize(
    ("tool", "roles", "resource", "verdict"),
    [
        ("refund", (), None, "ask"),
        ("refund", ("boss",), None, "allow"),
        ("refund", ("clerk", "boss"), "W9", "allow"),
        ("read", (), "/etc/passwd", "deny"),
        ("read", (), "/home/a\n/etc", "allow"),
        ("read", (), None, "allow"),
        ("write", ("boss",), None, "deny"),
        ("READ", (), None, "deny"),
    ],
)
def test_first_matching_rule_decides(
    tool: str, roles: tuple[str, ...], resource: str | None, verdict: str
) -> None:
    """The first matching rule decides; without a match the call is denied."""
    policy = Policy(
        rules=(
            Rule(verdict="allow", tool="refund*", role="boss"),
            Rule(verdict="ask", tool="refund*"),
            Rule(verdict="deny", tool="read", resource="/etc/*"),
            Rule(verdict="allow", tool="read"),
        )
    )
    assert policy.verdict(tool, roles, resource) == verdict


def test_resource_rule_needs_resource() -> None:
    """A rule for a resource does not apply to a call without one."""
    assert Policy(rules=(Rule(verdict="allow", resource="?*"),)).verdict("t") == "deny"
    assert Policy().verdict("t", ("boss",), "r") == "deny"


# Prices.


@given(USAGE)
def test_price_is_rounded_up(usage: Usage) -> None:
    """A price is rounded up and never below the exact amount."""
    price = Price(input=3, output=5, cache_read=7, cache_write=11)
    exact = (
        usage.input_tokens * 3
        + usage.output_tokens * 5
        + usage.cache_read_tokens * 7
        + usage.cache_write_tokens * 11
    )
    assert 0 <= price.cost_microusd(usage) * 1_000_000 - exact < 1_000_000


def test_first_price_in_effect_counts() -> None:
    """The first entry in effect counts; an unknown model has no price."""
    from datetime import date

    def entry(model: str, effective: str, amount: int) -> Entry:
        price = Price(input=amount, output=0, cache_read=0, cache_write=0)
        return Entry(model=model, effective=date.fromisoformat(effective), price=price)

    table = PriceTable(version="1", entries=(entry("p:new*", "2026-02-01", 2), entry("p:*", "2026-01-01", 1)))

    def found(model: str, day: str) -> int | None:
        price = table.find(model, date.fromisoformat(day))
        return price.input if price else None

    assert found("p:new-1", "2026-03-01") == 2
    assert found("p:new-1", "2026-01-15") == 1
    assert found("p:old", "2025-01-01") is None
    assert found("q:x", "2026-03-01") is None
    mine = PriceTable(version="2", entries=(entry("p:old", "2026-01-01", 9),))
    over = mine.over(table).find("p:old", date(2026, 5, 1))
    assert over is not None
    assert over.input == 9


def test_shipped_table_knows_its_models() -> None:
    """The shipped table has prices of the shipped models and of the scripted one."""
    from datetime import date

    assert shipped_prices().find("scripted:anything", date(2026, 11, 20)) is not None
    assert shipped_prices().find("anthropic:claude-sonnet-5-5", date(2026, 11, 20)) is not None


@pytest.mark.parametrize("text", [None, "{", '{"version": "1"}', '{"version": "1", "entries": [{}]}'])
def test_unreadable_price_table_is_named(tmp_path: Any, text: str | None) -> None:
    path = tmp_path / "prices.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DefinitionError, match="price table"):
        load_prices(path)


def test_texts_name_the_blobs_that_they_go_on_in() -> None:
    """A late answer, or a note of an earlier run, needs the blob that holds its rest."""
    name = "ab" * 32
    note = f"[line 1\n[9 of 99 bytes; read on with {read_on_call(name, 9)}]"
    assert Message.user(note).all_blobs == (name,)
    assert Message.user(f"{name} and {read_on_call('call-1-0', 9)}").all_blobs == ()


def test_copy_computes_anew() -> None:
    """A copy is made to be changed: what was computed of the first message does not come along."""
    message = Message.user("one two three four")
    before = message.token_bound
    message.cache.add("purpose", 1, "value", 5)
    assert message.cached_bytes == 5
    longer = message.model_copy(update={"parts": [Text(text="one two three four " * 50)]})
    deep = message.model_copy(deep=True)
    assert longer.token_bound > before
    assert (longer.cached_bytes, deep.cached_bytes) == (0, 0)
    assert deep == message
    assert deep.model_dump_json() == message.model_dump_json()


def test_one_value_is_kept_for_a_purpose() -> None:
    """A value for another key takes the place of the one before, in the count of bytes too."""
    message = Message.user("x")
    message.cache.add("purpose", ("a", 1), "first", 10)
    assert message.cache.find("purpose", ("a", 1)) == "first"
    assert message.cache.find("purpose", ("a", 2)) is None
    message.cache.add("purpose", ("a", 2), "second", 4)
    assert message.cache.find("purpose", ("a", 1)) is None
    assert message.cache.find("purpose", ("a", 2)) == "second"
    assert message.cached_bytes == 4


def test_other_forms_count_with_what_they_keep() -> None:
    message, shorter = Message.user("long " * 100), Message.user("long")
    message.cache.add_copies("fitted", 1, (shorter,))
    assert message.cached_bytes == size_bytes(shorter)
    shorter.cache.add("purpose", 1, "value", 50)
    assert message.cached_bytes == size_bytes(shorter) + 50
