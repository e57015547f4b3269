"""Redaction: secrets are masked wherever they stand, ordinary text is unchanged."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perdure.activities.content.redact import mask_own, mask_stream, mask_value, redact, redact_and_cut
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


OWN = {
    "SHOP_API_KEY": "corp-9f8a7b6c5d4e3f2a1b0c",
    "SHOP_TOKEN": "corp-9f8a7b6c",
    "CERT_PASSPHRASE": 'quo"te\\and\nline é ß',
    "DATABASE_URL": "postgres://shop:pgpass-5d4e3f2a@db/shop",
}
VALUES = [*list(OWN.values())[:3], "pgpass-5d4e3f2a"]


def _as_unicode_json(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


WRITERS: list[Callable[[str], str]] = [str, repr, json.dumps, quote, _as_unicode_json]


@pytest.fixture
def _own(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in OWN.items():
        monkeypatch.setenv(name, value)


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize("write", WRITERS)
@pytest.mark.parametrize("value", VALUES)
def test_own_secret_is_masked_in_every_form(value: str, write: Callable[[str], str]) -> None:
    """A secret is masked as it is, and as JSON, a URL and Python write it; in errors and in content."""
    written = write(value)
    for mask in (redact, mask_own):
        assert written.strip("'\"") not in mask(f"({written})")


@pytest.mark.usefixtures("_own")
@pytest.mark.parametrize("most", range(40, 120, 3))
def test_no_cut_leaves_a_piece(most: int) -> None:
    """Wherever a text is cut, by us or by whoever wrote it, no piece of a secret is left that can be told."""
    text = " ".join(["refused", *VALUES] * 20)
    for cut in (
        redact_and_cut(text, most),
        redact(text[:most]),
        redact(text[most:]),
        redact(f"{text[:most]}... ok"),
    ):
        assert not [value for value in VALUES if value[:6] in cut or value[-6:] in cut]


@pytest.mark.usefixtures("_own")
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.sampled_from([*VALUES, "corp-", "c", "co", "word ", "p", "pgpass", "9f8a7b6c", "é"])))
def test_stream_shows_no_secret(pieces: list[str]) -> None:
    """However a stream is split, what is shown has no secret, and is the beginning of the whole masked text."""
    text, shown = "", ""
    whole = mask_own("".join(pieces))
    for piece in "".join(pieces):
        text += piece
        before, shown = shown, mask_stream(text)
        assert shown.startswith(before)
        assert whole.startswith(shown)
        assert not [value for value in VALUES if value[:12] in shown]


@pytest.mark.usefixtures("_own")
def test_content_is_else_unchanged() -> None:
    """Content loses this process's own secrets, and nothing that only looks like one."""
    value = {"password": "hunter2hunter2", "found": [VALUES[0], 7, None], VALUES[1]: True}
    masked = {"password": "hunter2hunter2", "found": ["[redacted]", 7, None], VALUES[1]: True}
    assert mask_value(value) == masked


def test_places_and_words_are_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable with a secret's name may hold a file, an address or a short word: these stay readable."""
    (tmp_path / "key.pem").touch()
    values = {
        "TLS_KEY": str(tmp_path / "key.pem"),
        "TOKEN_URL": "https://auth.example.org/token",
        "KEY": "short",
    }
    values |= {"KEYCLOAK_REALM": "production", "TOKENIZERS_PARALLELISM": "not-at-all"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    text = " ".join(values.values())
    assert redact(text) == mask_own(text) == text


def test_texts_are_cut_in_one_place() -> None:
    """No activity shortens a text by itself: what is cut before it is redacted may keep half a secret."""
    folder = Path(redact.__code__.co_filename).parents[1]
    allowed = {"redact.py", "summary.py"}  # a summary's texts go to a model, or were masked as a reply
    sources = [path for path in folder.rglob("*.py") if path.name not in allowed]
    assert len(sources) > 20
    assert not [path.name for path in sources if "truncate_middle" in path.read_text()]


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
