"""Cache writes that live for an hour are counted apart from those that live for five minutes."""

from perdure.activities.providers.anthropic import _count as anthropic_count  # pyright: ignore[reportPrivateUsage]
from perdure.activities.providers.bedrock import _count as bedrock_count  # pyright: ignore[reportPrivateUsage]
from perdure.messages import Usage
from perdure.model import ModelConfig, ModelRequest
from perdure.providers import ReplyDraft


def _draft() -> ReplyDraft:
    return ReplyDraft(ModelRequest(config=ModelConfig(name="x:y")), "")


def test_anthropic_counts_one_hour_writes_apart() -> None:
    counted = {
        "input_tokens": 5,
        "cache_creation_input_tokens": 30,
        "cache_creation": {"ephemeral_5m_input_tokens": 10, "ephemeral_1h_input_tokens": 20},
    }
    draft = _draft()
    anthropic_count(counted, draft, final=False)
    first = Usage(input_tokens=5, cache_write_tokens=10, cache_write_1h_tokens=20)
    assert draft.usage == first
    # The last event carries the output alone.
    anthropic_count({"output_tokens": 7}, draft, final=True)
    assert draft.usage == draft.counted.cost(is_whole=True) == first.model_copy(update={"output_tokens": 7})


def test_bedrock_counts_one_hour_writes_apart() -> None:
    counted = {
        "inputTokens": 5,
        "outputTokens": 7,
        "cacheWriteInputTokens": 30,
        "cacheDetails": [{"ttl": "5m", "inputTokens": 10}, {"ttl": "1h", "inputTokens": 20}],
    }
    draft = _draft()
    bedrock_count(counted, draft)
    expected = Usage(input_tokens=5, cache_write_tokens=10, cache_write_1h_tokens=20, output_tokens=7)
    assert draft.usage == draft.counted.cost(is_whole=True) == expected


def test_writes_without_a_span_are_short_ones() -> None:
    draft = _draft()
    bedrock_count({"cacheWriteInputTokens": 30}, draft)
    assert draft.usage == Usage(cache_write_tokens=30)
    draft = _draft()
    anthropic_count({"cache_creation_input_tokens": 30}, draft, final=False)
    assert draft.usage == Usage(cache_write_tokens=30)
