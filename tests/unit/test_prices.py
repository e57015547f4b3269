"""The shipped prices are those of genai-prices, and cost the same there."""

import math
from datetime import UTC, date, datetime
from decimal import Decimal

import genai_prices
import pytest

from perdure.messages import Usage
from perdure.prices import Entry, Price, PriceTable, Tier, shipped_prices
from tests.price_table import OUR_NAMES, TABLE, generate

TODAY = date(2026, 11, 20)
THEIR_NAMES = {ours: theirs for theirs, names in OUR_NAMES.items() for ours in names}
SMALL = Usage(input_tokens=1_000, cache_read_tokens=2_000, cache_write_tokens=3_000, output_tokens=500)
LONG = SMALL.model_copy(update={"cache_read_tokens": 400_000})
ONE_HOUR = SMALL.model_copy(update={"cache_write_1h_tokens": 4_000})
FLAT = Price(input=2_000_000, output=10_000_000, cache_read=200_000, cache_write=2_500_000)
TIERED = FLAT.model_copy(
    update={
        "tiers": (
            Tier(
                above_input_tokens=1_000,
                input=4_000_000,
                output=15_000_000,
                cache_read=400_000,
                cache_write=5_000_000,
            ),
        )
    }
)


def test_table_is_what_the_generator_writes() -> None:
    assert TABLE.read_text() == generate(), "genai-prices has changed: make prices"


def _their_cost(name: str, usage: Usage, *, batch: bool) -> int:
    provider, _, model = name.partition(":")
    price = genai_prices.calc_price(
        genai_prices.Usage(
            input_tokens=usage.all_input_tokens,
            cache_read_tokens=usage.cache_read_tokens,
            cache_write_tokens=usage.all_cache_write_tokens,
            cache_write_1h_tokens=usage.cache_write_1h_tokens,
            output_tokens=usage.output_tokens,
        ),
        model,
        provider_id=THEIR_NAMES[provider],
        genai_request_timestamp=datetime(TODAY.year, TODAY.month, TODAY.day, tzinfo=UTC),
        price_context={"processing": "batch"} if batch else None,
    )
    dollars: Decimal = price.total_price
    return math.ceil(dollars * 1_000_000)


@pytest.mark.parametrize(
    "name",
    [
        "anthropic:claude-sonnet-5-5",
        "anthropic:claude-opus-5-5-20261001",
        "anthropic:claude-haiku-5-5",
        "anthropic:claude-fable-5-2",
        "anthropic:claude-sonnet-4-6",
        "bedrock:anthropic.claude-sonnet-4-5-20250929-v1:0",
        "bedrock:us.anthropic.claude-haiku-5-5",
        "bedrock:global.anthropic.claude-opus-5-5",
        "bedrock:amazon.nova-pro-v1:0",
        "openai:gpt-6.1-sol",
        "openai:gpt-5.6",
        "openai:o3",
        "openai:gpt-4o",
        "responses:gpt-6.1-sol",
        "gemini:gemini-2.5-pro",
        "gemini:gemini-3.8-flash",
        "groq:llama-3.3-70b-versatile",
        "mistral:mistral-large-latest",
        "xai:grok-4",
    ],
)
@pytest.mark.parametrize("usage", [SMALL, LONG, ONE_HOUR], ids=["small", "long", "one hour"])
@pytest.mark.parametrize("batch", [False, True], ids=["now", "batch"])
def test_cost_is_that_of_genai_prices(name: str, usage: Usage, batch: bool) -> None:
    price = shipped_prices().find(name, TODAY, batch=batch)
    if price is None:
        assert batch, "only a batch may have no price"
        return
    if usage.cache_write_1h_tokens and price.cache_write_1h is None:
        return  # the provider keeps nothing for an hour, and bills no such usage
    assert price.cost_microusd(usage) == _their_cost(name, usage, batch=batch)


def test_a_long_input_puts_the_whole_call_into_the_tier() -> None:
    assert TIERED.cost_microusd(Usage(input_tokens=1_000, output_tokens=1_000)) == 12_000
    assert TIERED.cost_microusd(Usage(input_tokens=1_001, output_tokens=1_000)) == 19_004
    assert TIERED.cost_microusd(Usage(input_tokens=1, cache_read_tokens=1_000)) == 404


def test_a_cache_write_for_an_hour_costs_twice_the_input_unless_stated() -> None:
    usage = Usage(cache_write_1h_tokens=1_000_000)
    assert FLAT.cost_microusd(usage) == 4_000_000
    assert FLAT.model_copy(update={"cache_write_1h": 3_000_000}).cost_microusd(usage) == 3_000_000
    assert FLAT.highest_input(one_hour_cache=True) == 4_000_000
    assert FLAT.highest_input(one_hour_cache=False) == 2_500_000


@pytest.mark.parametrize(
    ("pattern", "fits"),
    [
        ("a:x", {"a:x"}),
        ("a:*", {"a:x", "a:x-1", "a:long-x-2"}),
        ("a:*x*", {"a:x", "a:x-1", "a:long-x-2"}),
        ("a:*-x-?", {"a:long-x-2"}),
        ("a:x-[0-9]", {"a:x-1"}),
        ("*[!1]", {"a:x", "a:long-x-2"}),
    ],
)
def test_a_pattern_is_a_shell_pattern(pattern: str, fits: set[str]) -> None:
    table = PriceTable(version="t", entries=(Entry(model=pattern, effective=TODAY, price=FLAT),))
    assert {name for name in ("a:x", "a:x-1", "a:long-x-2") if table.find(name, TODAY)} == fits
