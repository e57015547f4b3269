"""From words of a command line to values."""

import io
from datetime import timedelta
from pathlib import Path

import pytest

from perdure.errors import InvalidRequest
from perdure.limits import Limits
from perdure.starter.cli.arguments import arguments_of, context_of, limits_of, read_prompt


def test_limits_are_read_by_name() -> None:
    words = ["steps=3", "cost_usd=0.5", "timeout=2m", "per_tool.refund=1", "per_tool.search=0"]
    assert limits_of(words) == Limits(
        steps=3, cost_usd=0.5, timeout=timedelta(minutes=2), per_tool={"refund": 1, "search": 0}
    )
    assert limits_of([]) is None


def test_missing_limit_is_not_set() -> None:
    limits = limits_of(["cost_usd=1"])
    assert limits is not None
    assert limits.model_fields_set == {"cost_usd"}


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("steps", "--limit 'steps': write name=value, such as --limit steps=3"),
        ("=3", "--limit '=3': write name=value"),
        ("step=3", "--limit: no limit 'step'; the limits are steps, tool_calls, "),
        ("steps=many", "--limit: steps: Input should be a valid integer"),
        ("steps=0", "--limit: steps: Input should be greater than or equal to 1"),
        ("timeout=soon", "--limit timeout=soon: write it as 90s, 2m or 1h"),
        ("timeout=0", "--limit timeout=0: write it as 90s, 2m or 1h"),
        ("per_tool.refund=x", "--limit: per_tool.refund: Input should be a valid integer"),
        ("timeout=99999999999999999h", "--limit timeout=99999999999999999h: write it as 90s, 2m or 1h"),
    ],
)
def test_a_wrong_limit_is_told(word: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        limits_of([word])
    assert str(caught.value).startswith(said)


def test_context_is_text_or_json() -> None:
    assert context_of(["order=077", "tags:=[1, 2]", "note=a=b", "empty="]) == {
        "order": "077",
        "tags": [1, 2],
        "note": "a=b",
        "empty": "",
    }
    with pytest.raises(InvalidRequest, match="--context 'tags:=\\[1': not JSON"):
        context_of(["tags:=[1"])


def test_arguments_are_a_json_object() -> None:
    assert arguments_of(None) is None
    assert arguments_of('{"amount": 3}') == {"amount": 3}
    for text in ("{", "[1]", "3", "[" * 100_000):
        with pytest.raises(InvalidRequest, match="--arguments"):
            arguments_of(text)


def test_the_prompt_comes_from_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "prompt.md"
    file.write_text("from a file", encoding="utf-8")
    monkeypatch.setattr("sys.stdin", io.StringIO("from stdin"))
    assert read_prompt("words", None) == "words"
    assert read_prompt(None, str(file)) == "from a file"
    assert read_prompt("-", None) == "from stdin"
    for words, name in ((None, None), ("words", "file")):
        with pytest.raises(InvalidRequest, match="give the agent one task: "):
            read_prompt(words, name)
    with pytest.raises(InvalidRequest, match=r"nosuch\.md"):
        read_prompt(None, str(tmp_path / "nosuch.md"))
    with pytest.raises(InvalidRequest, match="null byte"):
        read_prompt(None, "nul\0")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), encoding="utf-8"))
    with pytest.raises(InvalidRequest, match="stdin"):
        read_prompt("-", None)
