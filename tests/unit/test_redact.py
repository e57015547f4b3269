"""Redaction: secrets are masked wherever they stand, ordinary text is unchanged."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perdure.activities.content.redact import redact
from perdure.texts import fix_surrogates, truncate_middle

ALNUM = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789", min_size=24, max_size=40)
SHAPES = [
    "sk-{}",
    "sk-ant-api03-{}",
    "sk_live_{}",
    "ghp_{}",
    "github_pat_{}",
    "glpat-{}",
    "hf_{}",
    "xoxb-1-{}",
    "eyJ{0}.{0}.{0}",
    "-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----",
    "-----BEGIN PRIVATE KEY-----\n{}",
]
NAMED = [
    "password={}",
    "DB_PASSWORD={}",
    "PASSWORD: {}",
    "{{'password': '{}'}}",
    '{{"api_key": "{}"}}',
    '{{"apiKey":"{}"}}',
    "x-api-key: {}",
    "AWS_SECRET_ACCESS_KEY={}",
    "clientSecret={}",
    "refresh_token = {}",
    "https://host/?access_token={}&page=2",
    "Authorization: Bearer {}1",
    "authorization: basic {}==",
    "postgres://user:{}@host/db",
    "redis://:{}@host:6379/0",
    "https://user:p@{}@host/",
]
AROUND = ["{}", "x {} y", "({})", '"{}"', "a={}", "key_{}", "\n{}\n", "ä{}ä", "/{}/"]


@given(ALNUM, st.sampled_from(SHAPES), st.sampled_from(AROUND))
def test_secret_shapes_are_masked(secret: str, shape: str, around: str) -> None:
    assert secret not in redact(around.format(shape.format(secret)))


@given(ALNUM, st.sampled_from(NAMED), st.sampled_from(["{}", "error: {}", "({})", "\t{}\n"]))
def test_named_secrets_are_masked(secret: str, named: str, around: str) -> None:
    assert secret not in redact(around.format(named.format(secret)))


@given(st.text(max_size=80))
def test_redaction_is_idempotent(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize(
    "text",
    [
        "The order W6081887 is on its way; task-queue-of-the-day took it.",
        "max_tokens: 8192, tokens=123456, input_tokens: 100000",
        "no token was given; the secret of success is work",
        "the bearer certificate came, and a basic understanding with it",
        "http://localhost:8080/path?a=b@c",
        "see https://example.org/a:b for mail to lee@example.org",
        "risk-adjusted-returns-of-a-longer-period",
        "sk-learn",
        "key: value; monkey=banana12345",
        "日本語のテキスト 😀",
    ],
)
def test_ordinary_text_is_unchanged(text: str) -> None:
    assert redact(text) == text


def test_environment_secrets_are_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "correcthorsebattery")
    monkeypatch.setenv("SHOP_TOKEN", "correcthorse")
    monkeypatch.setenv("SHORT_TOKEN", "word")
    assert redact("xcorrecthorsebatteryx correcthorse word") == "x[redacted]x [redacted] word"


def test_name_of_secret_stays_readable() -> None:
    assert redact('{"api_key": "abcdefgh12"}') == '{"api_key": "[redacted]"}'
    assert redact("redis://:hunter2@host/0") == "redis://[redacted]@host/0"


@pytest.mark.parametrize(
    "piece", ["-eyJ", "secret_", "api_key ", "bearer a", "://a:", "-----BEGIN ", "token  ", "a-"]
)
def test_redaction_time_is_bounded(piece: str) -> None:
    before = time.process_time()
    redact(piece * (400_000 // len(piece)))
    assert time.process_time() - before < 3


def test_surrogates_are_fixed() -> None:
    assert fix_surrogates("a\ud83d\ude00b") == "a😀b"
    assert fix_surrogates("a\ud83db") == "a\ufffdb"
    assert redact("\udc80").encode()


@given(st.text(max_size=200), st.integers(20, 60))
def test_truncation_keeps_both_ends(text: str, most: int) -> None:
    cut = truncate_middle(text, most)
    if len(text) <= most:
        assert cut == text
    else:
        assert cut.startswith(text[: most // 2])
        assert cut.endswith(text[-(most // 2) :])
        assert len(cut) < most + 50
