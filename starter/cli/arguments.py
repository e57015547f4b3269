"""Words of a command line as values: prompts, limits, contexts, arguments of tools."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from perdure.definitions import explain
from perdure.errors import InvalidRequest
from perdure.limits import GraphLimits, Limits, PatternLimits, SwarmLimits
from perdure.settings import Duration


def read_prompt(text: str | None, file: str | None) -> str:
    """Return the prompt from the command line, from a file, or from stdin for "-".

    Raises:
        InvalidRequest: there is none or there are two, or the file or stdin cannot be read.

    """
    if (text is None) == (file is None):
        raise InvalidRequest(
            'give the agent one task: perdure run AGENT "...", or --file FILE, or "-" to read stdin'
        )
    # Both spellings are common for stdin, so both are taken.
    if text == "-" or file == "-":
        return _read_stdin()
    if file is None:
        return str(text)
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"prompt file {file}: {error}") from None


def _read_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"stdin: {error}") from None


def granted_of(words: Sequence[str]) -> Limits | None:
    """Return the limits that an extension grants, of the kind that has all of these names; None without words.

    Raises:
        InvalidRequest: as `limits_of`.

    """
    names = {word.partition("=")[0].partition(".")[0] for word in words}
    kinds = (Limits, SwarmLimits, GraphLimits, PatternLimits)
    return limits_of(words, next((kind for kind in kinds if names <= set(kind.model_fields)), Limits))


def limits_of(words: Sequence[str], kind: type[Limits] = Limits) -> Limits | None:
    """Return limits from `steps=3`, `cost_usd=0.5`, `timeout=2m`, `per_tool.refund=1`; None without words.

    Raises:
        InvalidRequest: there is no such limit, or the value does not fit it.

    """
    values: dict[str, Any] = {}
    per_tool: dict[str, str] = {}
    for word in words:
        name, value = _pair(word, "--limit", "steps=3")
        if name.startswith("per_tool."):
            per_tool[name.removeprefix("per_tool.")] = value
        else:
            values[name] = value
    if per_tool:
        values["per_tool"] = per_tool
    if not values:
        return None
    unknown = sorted(values.keys() - kind.model_fields.keys())
    if unknown:
        known = ", ".join(name for name in kind.model_fields if name != "per_tool")
        raise InvalidRequest(f"--limit: no limit {unknown[0]!r}; the limits are {known}, per_tool.TOOL")
    # Parsed here: pydantic takes other spellings, such as PT90S, and not 2m.
    for name in values.keys() & {"timeout", "node_timeout"}:
        values[name] = duration_of(values[name], f"--limit {name}=")
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InvalidRequest(f"--limit: {explain(error)}") from None


def duration_of(value: str, option: str) -> Any:
    """Return the timedelta of `90s`, `2m`, `1h`; `option` is the text before it on the command line.

    Raises:
        InvalidRequest: the value is no duration.

    """
    try:
        return TypeAdapter[Any](Duration).validate_python(value)
    except ValidationError:
        raise InvalidRequest(f"{option}{value}: write it as 90s, 2m or 1h") from None


def context_of(words: Sequence[str]) -> dict[str, Any]:
    """Return a run's context from `key=text` and `key:=json`.

    Raises:
        InvalidRequest: a word is neither.

    """
    return dict(_entry(word) for word in words)


def _entry(word: str) -> tuple[str, Any]:
    name, value = _pair(word, "--context", "order=77")
    # As in HTTPie: `=` is text, so that an order number keeps its zeros; `:=` is JSON.
    if not name.endswith(":"):
        return name, value
    try:
        return name[:-1], json.loads(value)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"--context {word!r}: not JSON: {error}") from None


def _pair(word: str, option: str, example: str) -> tuple[str, str]:
    name, equals, value = word.partition("=")
    if not (name and equals):
        raise InvalidRequest(f"{option} {word!r}: write name=value, such as {option} {example}")
    return name, value


def arguments_of(text: str | None) -> dict[str, Any] | None:
    """Return a tool call's arguments from a JSON object.

    Raises:
        InvalidRequest: the text is no JSON object.

    """
    if text is None:
        return None
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:  # brackets nested too deep for the parser
        raise InvalidRequest(f"--arguments is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"--arguments must be a JSON object, not {text!r}")
    return value  # pyright: ignore[reportUnknownVariableType]
