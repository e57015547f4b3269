"""From words of a command line to values: prompts, limits, contexts, arguments of tools."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from perdure.errors import InvalidRequest
from perdure.limits import Limits, explain
from perdure.settings import Duration


def prompt_of(words: str | None, file: str | None) -> str:
    """The prompt: given, from a file, or from stdin for "-".

    Raises:
        InvalidRequest: none or two of them, or the file or stdin cannot be read.

    """
    if (words is None) == (file is None):
        raise InvalidRequest(
            'say what the agent is to do, once: perdure run AGENT "...", or --file FILE, or "-" for stdin'
        )
    if words == "-" or file == "-":
        return _from_stdin()
    if file is None:
        return str(words)
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InvalidRequest(f"prompt file {file}: {error}") from None


def _from_stdin() -> str:
    try:
        return sys.stdin.read()
    except UnicodeDecodeError as error:
        raise InvalidRequest(f"stdin: {error}") from None


def limits_of(words: Sequence[str]) -> Limits | None:
    """`steps=3`, `cost_usd=0.5`, `timeout=2m`, `per_tool.refund=1` as limits.

    Raises:
        InvalidRequest: no such limit, or no value for it.

    """
    given: dict[str, Any] = {}
    per_tool: dict[str, str] = {}
    for word in words:
        name, value = _pair(word, "--limit", "steps=3")
        if name.startswith("per_tool."):
            per_tool[name.removeprefix("per_tool.")] = value
        else:
            given[name] = value
    if per_tool:
        given["per_tool"] = per_tool
    if not given:
        return None
    unknown = sorted(given.keys() - Limits.model_fields.keys())
    if unknown:
        known = ", ".join(name for name in Limits.model_fields if name != "per_tool")
        raise InvalidRequest(f"--limit: no limit {unknown[0]!r}; there are: {known}, per_tool.TOOL")
    if "timeout" in given:
        given["timeout"] = duration_of(given["timeout"], "--limit timeout=")
    try:
        return Limits.model_validate(given)
    except ValidationError as error:
        raise InvalidRequest(f"--limit: {explain(error)}") from None


def duration_of(value: str, option: str) -> Any:
    """`90s`, `2m`, `1h` as a timedelta.

    Raises:
        InvalidRequest: it is none; `option` is what stands before it.

    """
    try:
        return TypeAdapter[Any](Duration).validate_python(value)
    except ValidationError:
        raise InvalidRequest(f"{option}{value}: write it as 90s, 2m or 1h") from None


def context_of(words: Sequence[str]) -> dict[str, Any]:
    """`key=text`, or `key:=json`.

    Raises:
        InvalidRequest: neither.

    """
    return dict(_entry(word) for word in words)


def _entry(word: str) -> tuple[str, Any]:
    name, value = _pair(word, "--context", "order=77")
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
    """A tool call's arguments, as a JSON object.

    Raises:
        InvalidRequest: it is none.

    """
    if text is None:
        return None
    try:
        value: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"--arguments is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise InvalidRequest(f"--arguments must be a JSON object, not {text!r}")
    return value  # pyright: ignore[reportUnknownVariableType]
