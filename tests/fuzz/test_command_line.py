"""The command line with any words: an exit code of those it documents, and a line that says why."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.main import get_command
from typer.testing import CliRunner

from perdure.errors import InvalidRequest, NotReachable
from perdure.starter.cli import app as cli
from perdure.starter.cli.arguments import arguments_of, context_of, limits_of, read_prompt
from perdure.starter.cli.options import CODES, Common

from . import junk
from .depth import examples

KNOWN = {int(line.split()[0]) for line in CODES.splitlines() if line[:3].strip().isdigit()}
NUMBERS = ["0", "-1", "1e9", "nan", "inf", "9" * 400, "9" * 5000, "٣"]
PAIRS = [
    "steps=3",
    "steps=",
    "=3",
    "steps",
    "timeout=9999999999999999h",
    "timeout=0",
    "per_tool.=1",
    "cost_usd=1e400",
]
JSONS = ["{}", "[]", "{", "[" * 50_000, '{"a": "\\ud800"}', "9" * 5000, "NaN"]
words = st.sampled_from([*NUMBERS, *PAIRS, *JSONS, "-", "--", "/", "~nobody/x", "a:=[", "a:={}"]) | (
    junk.texts.filter(lambda text: "\0" not in text)  # no process can be given one
)


def _commands(group: Any) -> dict[tuple[str, ...], Any]:
    """All commands, those of groups too, by the words that call them."""
    found: dict[tuple[str, ...], Any] = {}
    for name, command in group.commands.items():
        below = _commands(command) if hasattr(command, "commands") else {(): command}
        found |= {(name, *rest): one for rest, one in below.items()}
    return found


COMMANDS = _commands(get_command(cli.app))


def _options(command: Any) -> list[str]:
    return [name for param in command.params for name in param.opts if name.startswith("-")]


def _line(names: tuple[str, ...], parts: list[tuple[str, ...]]) -> list[str]:
    return [*names, *(word for part in parts for word in part)]


def _lines(name: tuple[str, ...]) -> st.SearchStrategy[list[str]]:
    options = [one for one in _options(COMMANDS[name]) if one not in ("--help", "-h")]
    alone: st.SearchStrategy[tuple[str, ...]] = st.tuples(st.sampled_from(options) | words)
    pair: st.SearchStrategy[tuple[str, ...]] = st.tuples(st.sampled_from(options), words)
    return st.lists(alone | pair, max_size=5).map(partial(_line, name))


lines: st.SearchStrategy[list[str]] = st.sampled_from(sorted(COMMANDS)).flatmap(_lines) | st.lists(
    words, max_size=3
)


@pytest.fixture(autouse=True)
def nobody_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """No server, and no other processes."""

    async def connect(self: Common) -> Any:
        raise NotReachable("nobody is there")

    def leave(*_: Any, **__: Any) -> Any:
        raise SystemExit(0)

    monkeypatch.setattr(Common, "connect", connect)
    monkeypatch.setattr("os.execv", leave)
    monkeypatch.setattr("subprocess.run", leave)


@examples(200)
@given(lines)
def test_any_words_give_known_code(line: list[str]) -> None:
    """Any command line ends with a known exit code and never with a traceback."""
    done = CliRunner().invoke(cli.app, line)
    assert done.exception is None or isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code in KNOWN
    assert "Traceback" not in done.output or "--debug" in line
    assert "bug of ours" not in done.output


@examples(200)
@given(st.lists(words, max_size=3))
def test_words_become_values_or_are_refused(given_words: list[str]) -> None:
    singly = [partial(arguments_of, one) for one in given_words]
    files = [partial(read_prompt, None, one) for one in given_words if one not in ("-", "")]
    read: list[Callable[[], object]] = [
        partial(limits_of, given_words),
        partial(context_of, given_words),
        *singly,
        *files,
    ]
    for one in read:
        try:
            one()
        except InvalidRequest as error:
            assert str(error)
