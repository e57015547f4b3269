"""What the command line costs before it does anything."""

import os
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest

from perdure.errors import InvalidRequest, NotReachable, RunFailed
from perdure.starter.cli.options import Common, run_guarded

HEAVY = ("temporalio", "anthropic", "openai", "boto3", "botocore", "pydantic_settings", "pydantic")


def test_help_imports_nothing_heavy() -> None:
    script = (
        "import sys\nfrom perdure.starter.cli import app as cli\nsys.argv = ['perdure', '--help']\n"
        f"assert cli.run() == 0\nprint('\\nheavy', [name for name in {HEAVY!r} if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    heavy = done.stdout.decode().splitlines()[-1]
    assert [name for name in HEAVY[:-1] if name in heavy] == []


def test_every_command_has_the_common_options() -> None:
    from perdure.starter.cli.app import app
    from perdure.starter.cli.deploys import deploys

    assert {command.name for command in app.registered_commands} == {
        *("dev", "worker", "doctor", "run", "watch", "list", "show", "transcript", "send"),
        *(
            "approve",
            "deny",
            "pause",
            "resume",
            "stop",
            "cancel",
            "redrive",
            "extend",
            "upgrade",
            "agents",
            "chat",
            "graph",
        ),
        "replay-check",
    }
    assert {command.name for command in deploys.registered_commands} == {
        *("status", "promote", "ramp", "rollback", "drain", "move"),
    }
    for command in (*app.registered_commands, *deploys.registered_commands):
        assert command.callback is not None
        taken = set(command.callback.__annotations__)
        assert {field.name for field in fields(Common)} <= taken, command.name


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (InvalidRequest("no"), 2),
        (NotReachable("no"), 5),
        (RunFailed("no", kind="bug"), 1),
        (KeyboardInterrupt(), 130),
        (ZeroDivisionError("no\nno"), 1),
    ],
)
def test_error_is_line_and_code(error: BaseException, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    async def body() -> int:
        raise error

    assert run_guarded(Common(), body) == code
    said = capsys.readouterr().err
    assert said.count("\n") == (0 if code == 130 else 1)
    assert "Traceback" not in said


def test_debug_shows_the_traceback(capsys: pytest.CaptureFixture[str]) -> None:
    def body() -> int:
        raise InvalidRequest("no")

    assert run_guarded(Common(debug=True), body) == 2
    assert "Traceback" in capsys.readouterr().err


def test_options_become_a_command_line_again() -> None:
    common = Common(address="a:1", json=True)
    assert common.arguments("address", "namespace", "json") == ["--address", "a:1", "--json"]


def test_completion_of_the_shell_is_offered() -> None:
    asked = {"_PERDURE_COMPLETE": "complete_bash", "COMP_WORDS": "perdure tr", "COMP_CWORD": "1"}
    script = "import sys; sys.argv = ['perdure']; from perdure.__main__ import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", script], env={**os.environ, **asked}, capture_output=True, check=False
    )
    assert done.stdout.decode().split() == ["transcript"]


def test_documented_calls_exist() -> None:
    """The page names a call of Client, Run or Session for each command."""
    from perdure.starter.client.connect import Client
    from perdure.starter.client.run import Run
    from perdure.starter.client.session import Session

    page = Path(__file__).parents[2].joinpath("docs", "cli.md").read_text(encoding="utf-8")
    calls = re.findall(r"`(client|run|session)\.(\w+)\(", page)
    owners = {"client": Client, "run": Run, "session": Session}
    assert len(calls) > 20
    assert [call for call in calls if not hasattr(owners[call[0]], call[1])] == []


def test_help_loses_no_word_to_markup() -> None:
    """Rich takes `[a word]` for a style and drops it."""
    from rich.text import Text

    from perdure.starter.cli.app import app
    from perdure.starter.cli.deploys import deploys

    helps: list[str] = []
    for command in (*app.registered_commands, *deploys.registered_commands):
        assert command.callback is not None
        helps.append(command.callback.__doc__ or "")
        for annotation in command.callback.__annotations__.values():
            helps += [option.help or "" for option in getattr(annotation, "__metadata__", ())]
    assert len(helps) > 100
    assert [text for text in helps if Text.from_markup(text).plain != text] == []
