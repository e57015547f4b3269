"""The conformance suite: each built-in adapter passes it, and an adapter that breaks a rule is found."""

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from perdure.messages import Text, Usage
from perdure.model import Model, ModelConfig, ModelEvent, ModelRequest, Reply
from perdure.providers import OpenAIModel
from perdure.providers.check import main
from perdure.providers.conformance import Result, check_model, load_shapes, shipped_dialects
from perdure.providers.conformance.checks import PROTOCOL, WIRE

from .dialects import ANTHROPIC, BEDROCK, OPENAI, Dialect
from .more_dialects import AZURE, GEMINI, RESPONSES
from .record_shapes import RECORDED, shapes_of

HERE = "tests.unit.providers.test_conformance"
ADAPTERS = [
    *((dialect, dialect.name) for dialect in (ANTHROPIC, BEDROCK, GEMINI, OPENAI, RESPONSES)),
    (AZURE, "openai"),
]


async def _results(make: Callable[[str], Model], dialect: str = "openai", **how: Any) -> list[Result]:
    return [result async for result in check_model(make, load_shapes(dialect), **how)]


@pytest.mark.parametrize(("dialect", "spoken"), ADAPTERS, ids=[dialect.name for dialect, _ in ADAPTERS])
async def test_built_in_adapter_passes(dialect: Dialect, spoken: str) -> None:
    """Nothing fails, and nothing is skipped."""
    results = await _results(dialect.make, spoken, name=dialect.model_name)
    assert [result for result in results if result.state != "ok"] == []
    assert [result.name for result in results] == [*PROTOCOL, *WIRE]


def test_shipped_shapes_are_those_of_the_recorder() -> None:
    assert shipped_dialects() == sorted(dialect.name for dialect in RECORDED)
    folder = Path(__file__).parents[3] / "perdure" / "providers" / "conformance"
    for dialect in RECORDED:
        assert json.loads((folder / f"{dialect.name}.json").read_text()) == shapes_of(dialect), dialect.name


# -- adapters that break a rule


class Retries(OpenAIModel):
    """It calls once more after a failure, without a word."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        try:
            async for event in super().stream(request):
                yield event
        except Exception:
            async for event in super().stream(request):
                yield event


class Guesses(OpenAIModel):
    """It takes any end for a whole answer."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        try:
            async for event in super().stream(request):
                yield event
        except Exception as error:
            yield Reply(parts=(Text(text=str(error)),), stop="end_turn", usage=Usage())


class Raises(OpenAIModel):
    """It lets errors of other kinds out."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        try:
            async for event in super().stream(request):
                yield event
        except Exception as error:
            raise RuntimeError(str(error)) from None


class Repeats(OpenAIModel):
    """It yields its reply twice."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        async for event in super().stream(request):
            yield event
            if isinstance(event, Reply):
                yield event


class Takes(OpenAIModel):
    """It takes any option."""

    def check(self, config: ModelConfig) -> None:
        pass


class Speaks(OpenAIModel):
    """It says itself what it speaks."""

    dialect = "openai"


class Local:
    """Model without a wire."""

    def check(self, config: ModelConfig) -> None:
        if config.options:
            from perdure.errors import DefinitionError

            raise DefinitionError("it takes no options")

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        yield Reply(parts=(Text(text="hi"),), stop="end_turn", usage=Usage())


local = Local()


@pytest.mark.parametrize(
    ("cls", "check", "words"),
    [
        (Retries, "overloaded", "2 requests"),
        (Guesses, "cut", "not with an error"),
        (Raises, "unknown_stop", "raise ModelError"),
        (Repeats, "text", "exactly one"),
        (Takes, "settings", "wings"),
    ],
)
async def test_broken_rule_is_found(cls: type[OpenAIModel], check: str, words: str) -> None:
    """The result says what the adapter did, and what to do."""
    [result] = await _results(lambda url: cls(api_key="key", base_url=f"{url}/v1"), only=[check])
    assert (result.state, words in result.words) == ("failed", True), result


# -- the command


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ([f"{HERE}:Speaks", "--only", "text", "call"], 0, "2 of 2 checks hold"),
        ([f"{HERE}:Takes", "--dialect", "openai", "--only", "settings"], 1, "FAILED  settings: check takes"),
        ([f"{HERE}:local"], 0, "4 of 4 checks hold"),
        ([f"{HERE}:Takes"], 2, "say which dialect"),
        ([f"{HERE}:Takes", "--dialect", "latin"], 2, "no dialect and no file 'latin'"),
        ([f"{HERE}:Takes", "--dialect", "openai", "--only", "wings"], 2, "no check 'wings'"),
        ([f"{HERE}:Nobody", "--dialect", "openai"], 2, "cannot import"),
        ([f"{HERE}:HERE", "--dialect", "openai"], 2, "is no model"),
        ([f"{HERE}:local", "--dialect", "openai"], 2, "name a class or function"),
        (["nonsense"], 2, "write MODULE:NAME"),
    ],
)
def test_command_says_what_holds(
    arguments: list[str], code: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == code
    written = capsys.readouterr()
    assert words in written.out + written.err


def test_own_shapes_are_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the file does not hold is skipped; a file of another form is refused."""
    shapes = shapes_of(OPENAI)
    shapes["shapes"] = {"text": shapes["shapes"]["text"]}
    path = tmp_path / "own.json"
    path.write_text(json.dumps(shapes))
    assert main([f"{HERE}:Speaks", "--dialect", str(path), "--only", "text", "call"]) == 0
    assert "1 of 2 checks hold, 1 skipped" in capsys.readouterr().out
    path.write_text("[]")
    assert main([f"{HERE}:Speaks", "--dialect", str(path)]) == 2
    assert "no file of shapes" in capsys.readouterr().err
