"""Errors of providers: the words are kept whatever the body's shape, and the kind is the right one."""

import json
from datetime import timedelta
from typing import Any

import pytest

from perdure.errors import ErrorKind
from perdure.providers import kind_of_error, read_error

from .conftest import Wire
from .server import Answer

BODIES: list[tuple[Any, str]] = [
    ({"error": {"message": "why", "type": "t", "code": None}}, "why"),
    ({"error": "why"}, "why"),
    ({"detail": "why"}, "why"),
    ({"detail": [{"loc": ["body", "x"], "msg": "why"}, {"msg": "and how"}]}, "why; and how"),
    ({"detail": {"error": {"message": "why"}}}, "why"),
    ({"message": "why"}, "why"),
    ({"Message": "why"}, "why"),
    ({"errors": ["why", {"message": "and how"}]}, "why; and how"),
    (
        {
            "error": {
                "message": "Provider returned error",
                "metadata": {"raw": '{"error": {"message": "why"}}'},
            }
        },
        "why",
    ),
    ({"error": {"message": '{"error": {"message": "why"}}'}}, "why"),
    ([{"error": {"code": 400, "message": "why", "status": "INVALID_ARGUMENT"}}], "why"),
    ({"object": "error", "message": "why", "code": 40303}, "why"),
    ({"strange": {"shape": "why"}}, "why"),
    ("why", "why"),
    (b'"why"', "why"),
    (
        "<html><head><title>502</title><style>p {}</style></head><body><p>why &amp; how</body></html>",
        "why & how",
    ),
    (b"\xff why", "why"),
]


@pytest.mark.parametrize(("body", "words"), BODIES, ids=range(len(BODIES)))
def test_words_are_kept_whatever_the_body(body: Any, words: str) -> None:
    assert words in read_error(body).words
    text = body if isinstance(body, str | bytes) else json.dumps(body)
    assert words in read_error(text, 400).message


@pytest.mark.parametrize("body", [None, "", b"", {}, [], 0, "{", {"error": None}])
def test_error_without_words_says_so(body: Any) -> None:
    assert read_error(body, 502).message.startswith("502 error: ")
    assert kind_of_error(read_error(body, 502)) == "overloaded"
    assert kind_of_error(read_error(body)) == "stream_cut"


@pytest.mark.parametrize("depth", [5, 5000])
def test_nested_error_is_bounded(depth: int) -> None:
    body: Any = "why"
    for _ in range(depth):
        body = {"error": [body]}
    assert len(read_error(body).message) < 30_000
    assert len(read_error("x" * 10**6).words) < 30_000


async def test_refusal_keeps_its_words(wire: Wire) -> None:
    """Through each adapter's library, over HTTP: the words and the kind of the status."""
    for body, words in BODIES:
        raw = (
            body
            if isinstance(body, bytes)
            else body.encode()
            if isinstance(body, str)
            else json.dumps(body).encode()
        )
        for kind in ("application/json", "text/html"):
            error = await wire.error(Answer(status=503, headers={"content-type": kind}, chunks=(raw,)))
            assert words in str(error), body
            assert error.kind == "overloaded", body


KINDS: dict[ErrorKind, list[tuple[int, str]]] = {
    "context_overflow": [
        (400, "prompt is too long: 250000 tokens > 200000 maximum"),
        (400, "input length and `max_tokens` exceed context limit: 190000 + 20000 > 200000"),
        (400, "Your input exceeds the context window of this model. Please adjust your input and try again."),
        (
            400,
            "Input tokens exceed the configured limit of 272000 tokens. Your messages resulted in 300000 tokens.",
        ),
        (400, "The input token count (1048577) exceeds the maximum number of tokens allowed (1048576)."),
        (400, "This model's maximum prompt length is 131072 but the request contains 537812 tokens."),
        (
            400,
            "Prompt contains 40000 tokens and 0 draft tokens, too large for model with 32768 maximum context length",
        ),
        (413, "Request too large for model `llama-3` on tokens per minute (TPM): Limit 6000, Requested 7000"),
        (413, "Request body too large for gpt-4o model. Max size: 8000 tokens."),
        (400, "Please reduce the length of the messages or completion."),
        (400, "The decoder prompt (length 5000) is longer than the maximum model length of 4096."),
        (400, "Input length (5000) exceeds model's maximum context length (4096)."),
        (400, "The input (5000 tokens) is longer than the model's context length (4096 tokens)."),
        (400, "the request exceeds the available context size, try increasing it"),
        (500, "input is too large to process. increase the physical batch size"),
        (400, "prompt too long; exceeded max context length by 300 tokens"),
        (400, "Input is too long for requested model."),
        (400, "too many input tokens"),
        (400, "tokens to keep from the initial prompt is greater than the context length"),
        (400, "Input validation error: `inputs` must have less than 1024 tokens. Given: 2000"),
        (400, "invalid request: total number of tokens in the prompt cannot exceed 4081"),
    ],
    "payment": [
        (
            400,
            "Your credit balance is too low to access the API. Please go to Plans & Billing to purchase credits.",
        ),
        (
            400,
            "You have reached your specified API usage limits. You will regain access on 2027-01-01 at 00:00 UTC.",
        ),
        (403, "Your team has either used all available credits or reached its monthly spending limit."),
        (402, "Insufficient Balance"),
        (403, "INVALID_PAYMENT_INSTRUMENT: a valid payment instrument must be provided."),
        (429, "You exceeded your current quota, please check your plan and billing details."),
        (400, "Access denied, please make sure your account is in good standing: Arrearage"),
        (429, "Your account org-1 is suspended due to insufficient balance, please recharge your account"),
        (400, "Billing hard limit has been reached"),
    ],
    "filtered": [
        (
            400,
            "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        ),
        (400, "Output blocked by content filtering policy"),
        (400, "Invalid prompt: your prompt was flagged as potentially violating our usage policy."),
        (400, "Content Exists Risk"),
        (400, "Input data may contain inappropriate content."),
        (400, "The request was rejected because it was considered high risk"),
        (403, "Content violates usage guidelines. Failed check: SAFETY_CHECK_TYPE_DATA_LEAKAGE"),
        (403, 'openai/gpt requires moderation. Your input was flagged for "violence".'),
        (400, "This request has been blocked by our content filters."),
    ],
    "authentication": [
        (400, "API key not valid. Please pass a valid API key."),
        (400, "This organization has been disabled."),
        (403, "Your account has been suspended for a violation of our usage policies."),
        (401, "invalid x-api-key"),
    ],
    "not_found": [
        (400, "The provided model identifier is invalid."),
        (400, "The model `gpt-9` does not exist or you do not have access to it."),
        (404, "model 'm' not found"),
    ],
    "too_large": [(413, "Request exceeds the maximum size"), (400, "request entity too large")],
    "rate_limited": [(429, "Rate limit reached for requests"), (429, "Too many tokens, please wait")],
    "bad_request": [
        (400, "messages.1.content.0.tool_use.name: String should match pattern"),
        (400, "max_tokens: 100000 > 64000, which is the maximum allowed number of output tokens"),
        (400, "Unknown parameter: 'content_filter'."),
        (400, "tool_use ids must be unique"),
        (400, "messages: text content blocks must be non-empty"),
        (400, "Invalid schema for function 'pay': 'budget' is not of type 'object'"),
        (400, "image exceeds 5 MB maximum: 6000000 bytes > 5242880 bytes"),
    ],
}


@pytest.mark.parametrize("kind", KINDS)
def test_wording_gives_the_kind(kind: ErrorKind) -> None:
    for status, words in KINDS[kind]:
        for body in (
            {"error": {"message": words, "type": "invalid_request_error"}},
            {"detail": words},
            words,
        ):
            assert kind_of_error(read_error(body, status)) == kind, words


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (
            {
                "error": {
                    "message": "x",
                    "code": "content_filter",
                    "innererror": {"code": "ResponsibleAIPolicyViolation"},
                }
            },
            400,
            "filtered",
        ),
        ({"error": {"message": "x", "code": "invalid_prompt"}}, 400, "filtered"),
        ({"code": "DataInspectionFailed", "message": "x"}, 400, "filtered"),
        ({"error": {"message": "x", "type": "insufficient_quota"}}, 429, "payment"),
        (
            {
                "error": {
                    "code": 429,
                    "message": "exceeded your current quota, check your plan and billing details",
                    "status": "RESOURCE_EXHAUSTED",
                    "details": [{"retryDelay": "34s"}],
                }
            },
            429,
            "rate_limited",
        ),
        ({"error": {"message": "x", "type": "upstream_error"}}, None, "stream_cut"),
        ({"error": {"message": "x", "code": 529}}, None, "overloaded"),
        ({"error": {"message": "x", "status": "UNAVAILABLE"}}, None, "overloaded"),
        ({"error": {"message": "x", "type": "rate_limit_error"}}, 400, "rate_limited"),
        ({"error": {"message": "x", "code": {"odd": ["shape"]}, "type": 7.5}}, 400, "bad_request"),
    ],
)
def test_code_gives_the_kind(body: Any, status: int | None, kind: str) -> None:
    assert kind_of_error(read_error(body, status)) == kind


def test_delay_in_a_body_is_read() -> None:
    body = {"error": {"details": [{"@type": "RetryInfo", "retryDelay": "34.5s"}]}}
    assert read_error(body, 429).delay == timedelta(seconds=34.5)
    assert read_error({"retryDelay": "99999999999s"}).delay is None
