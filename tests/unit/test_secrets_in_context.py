"""Secrets in the context of a run, which is plain text in history: refused by their place, never quoted."""

from typing import Any

import pytest

from perdure.errors import InvalidRequest
from perdure.starter.client.requests import build_request
from perdure.texts import find_secret
from perdure.wire.requests import RunRequest, SessionRequest

KEY = "sk-ant-api03-9f8a7b6c5d4e3f2a1b0c9f8a7b6c5d4e"
OPAQUE = "9f8a7b6c5d4e3f2a1b0c"


@pytest.mark.parametrize(
    ("context", "place"),
    [
        ({"order": "W1", "token": KEY}, "context.token"),
        ({"note": f"use {KEY} for it"}, "context.note"),
        ({"bank": {"keys": ["", KEY]}}, "context.bank.keys[1]"),
        ({"apiKey": OPAQUE}, "context.apiKey"),
        ({"db_password": OPAQUE}, "context.db_password"),
        ({"Authorization": f"Bearer {OPAQUE}"}, "context.Authorization"),
        ({"url": f"postgresql://me:{OPAQUE}@db/x"}, "context.url"),
        ({"accounts": [{"secret": OPAQUE}]}, "context.accounts[0].secret"),
    ],
)
def test_secrets_are_named_by_place(context: dict[str, Any], place: str) -> None:
    """Whatever the depth, and whether its form or its field's name tells it."""
    assert find_secret(context, "context") == place
    requests: list[tuple[Any, dict[str, Any]]] = [(RunRequest, {"prompt": "go"}), (SessionRequest, {})]
    for kind, fields in requests:
        with pytest.raises(InvalidRequest, match="looks like a secret") as refused:
            build_request(kind, agent="a", context=context, **fields)
        assert place in str(refused.value)
        assert OPAQUE not in str(refused.value)


@pytest.mark.parametrize(
    "context",
    [
        {},
        {"order": "W1", "tenant": "acme", "trace": "4bf92f3577b34da6a3ce929d0e0e4736"},
        {"page_token": OPAQUE, "nextToken": OPAQUE},
        {"tokens": 100_000, "token": "blue", "secret": "he likes tea, and nobody knows"},
        {"token_count": OPAQUE, "keys": ["order", "user"], "none": None, "flag": True},
    ],
)
def test_ordinary_values_pass(context: dict[str, Any]) -> None:
    """Ids, places in lists, counts and words are no secrets."""
    assert build_request(RunRequest, agent="a", prompt="go", context=context).context == context
