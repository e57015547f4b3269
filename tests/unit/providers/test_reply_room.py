"""Refusals of a reply's bound: read in the words of each provider, and never taken for a conversation too long."""

import pytest

from perdure.activities.reply_bound import shorter_bound
from perdure.errors import ErrorKind, ModelError
from perdure.providers.failures import is_context_overflow

_VLLM = "'max_tokens' or 'max_completion_tokens' is too large: {}. This model's maximum context length is 4096 tokens "
_LENGTH = "This model's maximum context length is {} tokens. However, you requested {} tokens ({})."
_ASKED = (
    "This model's maximum context length is 4096 tokens. However, you requested 4096 output tokens and your "
    "prompt contains at least 1000 input tokens, for a total of at least 5096 tokens."
)
_OF_CONTEXT = "input length and `max_tokens` exceed context limit: {}, decrease input length or `max_tokens`"


@pytest.mark.parametrize(
    ("words", "asked", "bound"),
    [
        (_VLLM.format(8192) + "and your request has 30 input tokens.", 8192, 4066),
        (_VLLM.format(4096) + "and your request has 30 input tokens (4096 > 4096 - 30).", 4096, 4066),
        (_LENGTH.format(4097, 4130, "30 in the messages, 4100 in the completion"), 4100, 4067),
        (
            _LENGTH.format(8192, 8350, "120 in the messages, 38 in the functions, 8192 in the completion"),
            8192,
            8034,
        ),
        (_LENGTH.format(4097, 9000, "8900 in the messages, 100 in the completion"), 100, None),
        (_ASKED, 4096, 3096),
        (_OF_CONTEXT.format("188240 + 21333 > 200000"), 21333, 11760),
        (_OF_CONTEXT.format("199,990 + 8,192 > 200,000"), 8192, None),
        ("400 invalid_request_error: max_tokens: 100000 > 8192, which is the maximum allowed", 100000, 8192),
        (
            "max_tokens is too large: 100000. This model supports at most 16384 completion tokens",
            100000,
            16384,
        ),
        ("The maximum tokens you requested exceeds the model limit of 4096. Try again with less", 8192, 4096),
        ("`max_tokens` must be less than or equal to `8192`, the maximum for this model", 32000, 8192),
        ("`inputs` tokens + `max_new_tokens` must be <= 4097. Given: 30 `inputs` tokens", 4096, 4067),
        ("maxOutputTokens is 65536 but the supported range is from 1 to 8193 (exclusive)", 65536, 8193),
        ("400: max_tokens is too large", 8192, 4096),
        ("prompt is too long: 250000 tokens > 200000 maximum", 8192, None),
        ("Input is too long for requested model.", 8192, None),
        ("This model's maximum context length is 8192 tokens, and your messages have 9000", 4096, None),
        ("`max_tokens` must be greater than `thinking.budget_tokens`", 8192, None),
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", 8192, None),
    ],
)
def test_refused_bound_is_made_smaller(words: str, asked: int, bound: int | None) -> None:
    """The next bound is what the words leave room for; None where the conversation, or something else, is at fault."""
    kind: ErrorKind = "context_overflow" if is_context_overflow(words) else "bad_request"
    assert shorter_bound(ModelError(kind, words), asked) == bound


def test_other_errors_change_no_bound() -> None:
    assert shorter_bound(ModelError("rate_limited", "max_tokens is too large: 9"), 8192) is None
