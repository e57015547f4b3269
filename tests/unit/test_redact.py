"""Redaction: no secret survives it, wherever it stands; ordinary text does, untouched."""

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
def test_what_is_shaped_like_a_secret_does_not_survive(secret: str, shape: str, around: str) -> None:
    assert secret not in redact(around.format(shape.format(secret)))


@given(ALNUM, st.sampled_from(NAMED), st.sampled_from(["{}", "error: {}", "({})", "\t{}\n"]))
def test_what_is_called_a_secret_does_not_survive(secret: str, named: str, around: str) -> None:
    assert secret not in redact(around.format(named.format(secret)))


@given(st.text(max_size=80))
def test_redacting_twice_is_redacting_once(text: str) -> None:
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
def test_ordinary_text_stays_as_it_is(text: str) -> None:
    assert redact(text) == text


def test_values_of_this_processes_own_secrets_are_masked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SHOP_API_KEY", "correcthorsebattery")
    monkeypatch.setenv("SHOP_TOKEN", "correcthorse")
    monkeypatch.setenv("SHORT_TOKEN", "word")
    assert redact("xcorrecthorsebatteryx correcthorse word") == "x[redacted]x [redacted] word"


def test_what_names_a_secret_stays_readable() -> None:
    assert redact('{"api_key": "abcdefgh12"}') == '{"api_key": "[redacted]"}'
    assert redact("redis://:hunter2@host/0") == "redis://[redacted]@host/0"


@pytest.mark.parametrize(
    "piece", ["-eyJ", "secret_", "api_key ", "bearer a", "://a:", "-----BEGIN ", "token  ", "a-"]
)
def test_no_text_takes_long_to_redact(piece: str) -> None:
    before = time.process_time()
    redact(piece * (400_000 // len(piece)))
    assert time.process_time() - before < 3


def test_halves_of_characters_are_joined_or_marked() -> None:
    assert fix_surrogates("a\ud83d\ude00b") == "a😀b"
    assert fix_surrogates("a\ud83db") == "a\ufffdb"
    assert redact("\udc80").encode()


@given(st.text(max_size=200), st.integers(20, 60))
def test_a_bounded_text_keeps_its_beginning_and_its_end(text: str, most: int) -> None:
    cut = truncate_middle(text, most)
    if len(text) <= most:
        assert cut == text
    else:
        assert cut.startswith(text[: most // 2])
        assert cut.endswith(text[-(most // 2) :])
        assert len(cut) < most + 50
