"""Cache writes that live for an hour are counted apart from those that live for five minutes."""

from perdure.activities.providers.anthropic import _usage as anthropic_usage  # pyright: ignore[reportPrivateUsage]
from perdure.activities.providers.bedrock import _usage as bedrock_usage  # pyright: ignore[reportPrivateUsage]
from perdure.messages import Usage


def test_anthropic_counts_one_hour_writes_apart() -> None:
    counted = {
        "input_tokens": 5,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    }
    first = anthropic_usage(counted, Usage())
    assert first == Usage(input_tokens=5, cache_write_tokens=10, cache_write_1h_tokens=20)
    # The last event carries the output alone.
    assert anthropic_usage({"output_tokens": 7}, first) == first.model_copy(update={"output_tokens": 7})


def test_bedrock_counts_one_hour_writes_apart() -> None:
    counted = {
        "inputTokens": 5,
        "outputTokens": 7,
        "cacheWriteInputTokens": 30,
        "cacheDetails": [{"ttl": "5m", "inputTokens": 10}, {"ttl": "1h", "inputTokens": 20}],
    }
    expected = Usage(input_tokens=5, cache_write_tokens=10, cache_write_1h_tokens=20, output_tokens=7)
    assert bedrock_usage(counted) == expected


def test_writes_without_a_span_are_short_ones() -> None:
    assert bedrock_usage({"cacheWriteInputTokens": 30}) == Usage(cache_write_tokens=30)
    assert anthropic_usage({"cache_creation_input_tokens": 30}, Usage()) == Usage(cache_write_tokens=30)
