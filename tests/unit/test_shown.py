"""Texts that a person decides by: nothing in them is hidden."""

import io
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from perdure.shown import call_text, cut, visible
from perdure.starter.cli import screen, tables
from perdure.starter.client.waiting import choose_approval
from perdure.wire.events import ApprovalRequested
from perdure.wire.results import Approval, RunStatus

from .runs import answered, begun, call, details

HIDDEN = {
    "right-to-left override": "\u202e",
    "isolate": "\u2066",
    "Arabic letter mark": "\u061c",
    "zero width space": "\u200b",
    "zero width joiner": "\u200d",
    "word joiner": "\u2060",
    "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad",
    "tag": "\U000e0041",
    "variation selector": "\ufe0f",
    "variation selector 17": "\U000e0100",
    "Hangul filler": "\u3164",
    "braille blank": "\u2800",
    "combining grapheme joiner": "\u034f",
    "no-break space": "\u00a0",
    "line separator": "\u2028",
    "escape": "\x1b",
    "backspace": "\b",
    "carriage return": "\r",
    "next line": "\x85",
    "delete": "\x7f",
    "private use": "\ue000",
}
EVERY_SHOWN = ("call_text", "line", "details", "refusal")


def _shown(where: str, arguments: dict[str, Any]) -> str:
    """The text about a waiting call, as each place shows it."""
    state = answered(begun(), call("pay", **arguments))
    approval = Approval(
        call_id="call-1-1", tool="pay", arguments=arguments, digest="d", since=datetime.now(UTC), run_id="r"
    )
    match where:
        case "call_text":
            return approval.text
        case "line":
            written = io.StringIO()
            line = screen.event_line(ApprovalRequested(approval=approval))
            Console(file=written, emoji=False, width=10_000).print(line)
            return written.getvalue().rstrip("\n") + tables.waiting_item(approval)
        case "details":
            return next(line for line in details(state).splitlines() if "waits for a person" in line)
        case _:
            status = RunStatus(agent="a", status="waiting_approval", doing="", waiting=[approval, approval])
            with pytest.raises(Exception, match="calls wait") as refused:
                choose_approval("r", status, None, None)
            return str(refused.value)


@pytest.mark.parametrize("where", EVERY_SHOWN)
def test_hidden_characters_are_made_visible(where: str) -> None:
    """A character without a form of its own stands as its escape, wherever a person decides by the text."""
    arguments = {f"a{n}": f"pay {char}100" for n, char in enumerate(HIDDEN.values())}
    text = _shown(where, arguments)
    assert text.isprintable()
    for char in HIDDEN.values():
        assert char not in text
        assert json.dumps(char)[1:-1] in text


@pytest.mark.parametrize("where", EVERY_SHOWN)
def test_arguments_cannot_imitate_others(where: str) -> None:
    """Names and values of arguments cannot look like other arguments, markup or emoji names."""
    arguments = {'to="Ann", cents': 'x", cents=1, y="', "b": "`c` [red]d[/] :smile:", " ": "  two  spaces "}
    text = _shown(where, arguments)
    assert r'"to=\"Ann\", cents"="x\", cents=1, y=\""' in text
    assert ":smile:" in text
    assert '" "="  two  spaces "' in text


@pytest.mark.parametrize("plain", ["Grüße", "日本語", "عربي", "עברית", "ไทย", "🙂", "a b", "e\u0301"])
def test_ordinary_texts_stay_as_they_are(plain: str) -> None:
    assert visible(plain) == plain


def test_lines_of_a_question_stay() -> None:
    assert visible("one\ntwo\u202e", lines=True) == "one\ntwo\\u202e"


ARGUMENTS = st.dictionaries(
    st.text(max_size=20), st.recursive(st.text() | st.integers() | st.none(), st.lists), max_size=80
)


@given(ARGUMENTS, st.integers(100, 2000))
def test_cut_calls_say_how_much_is_cut(arguments: dict[str, Any], most: int) -> None:
    """A call within a bound names every argument, or says how many it leaves out."""
    text = call_text("pay", arguments, most)
    assert len(text) <= most
    assert text.isprintable()
    whole = call_text("pay", arguments)
    assert text == whole or "characters)" in text or "more arguments" in text
    if "more arguments" not in text and " arguments of " not in text:
        assert all(visible(json.dumps(name, ensure_ascii=False))[1:-1] in text for name in arguments)


def test_cut_texts_count_what_is_missing() -> None:
    assert cut("x" * 100, 40) == f"{'x' * 22}…(+78 characters)"
    assert call_text("pay", {"a": "x" * 500, "last": 1}, 100).endswith("characters), last=1)")
