r"""Shapes of a dialect: recorded answers by name, read from JSON.

    {"model": "own:m-1",
     "headers": {"content-type": "application/x-ndjson"},
     "shapes": {"text": {"chunks": ["{\"content\": \"Hello, \"}\n", ...]},
                "rate_limited": {"status": 429, "headers": {"retry-after": "7"}, "chunks": ["slow down"]}}}

A chunk that is no text stands as {"base64": "..."}. `headers` of the file are those of answers with status 200.
"""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast

_FOLDER = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Answer of a server. `end`: "whole" ends the body, "cut" breaks the connection, "hang" says no more."""

    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    chunks: tuple[bytes, ...] = ()
    end: Literal["whole", "cut", "hang"] = "whole"


@dataclass(frozen=True, kw_only=True)
class Shapes:
    """Recorded answers of one dialect."""

    name: str
    model: str
    """Name of a model, as an agent has it: "provider:model"."""
    answers: Mapping[str, Answer]


def shipped_dialects() -> list[str]:
    """Return the names of the dialects whose shapes come with Perdure."""
    return sorted(path.stem for path in _FOLDER.glob("*.json"))


def load_shapes(name: str) -> Shapes:
    """Return the shapes of a dialect that comes with Perdure, or of a JSON file of your own.

    Raises:
        ValueError: there is no such dialect or file, or the file is not as this module says.

    """
    path = _FOLDER / f"{name}.json" if name in shipped_dialects() else Path(name)
    if not path.is_file():
        known = ", ".join(shipped_dialects())
        raise ValueError(f"no dialect and no file {name!r}; the dialects are {known}")
    try:
        content = json.loads(path.read_text())
        usual = content.get("headers", {})
        answers = {shape: _answer(fields, usual) for shape, fields in content["shapes"].items()}
        return Shapes(name=path.stem, model=content["model"], answers=answers)
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: no file of shapes: {type(error).__name__}: {error}") from None


def _answer(told: Mapping[str, Any], usual: Mapping[str, str]) -> Answer:
    status = told.get("status", 200)
    headers = {
        **(usual if status == 200 else {"content-type": "application/json"}),
        **told.get("headers", {}),
    }
    chunks = tuple(_chunk(chunk) for chunk in told["chunks"])
    return Answer(status=status, headers=headers, chunks=chunks, end=told.get("end", "whole"))


def _chunk(told: Any) -> bytes:
    if not isinstance(told, dict):
        return str(told).encode()
    return base64.b64decode(cast("dict[str, str]", told)["base64"])
