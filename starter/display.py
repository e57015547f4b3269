"""Text, amounts and durations as people read them; the command line and the drawings share them."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from perdure.shown import call_text, visible

# Text of models and tools goes to terminals, where an escape sequence could move the cursor or worse.
_CONTROL_CODES: Final = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def clean(text: str) -> str:
    """Return the text without control characters; line ends and tabs stay."""
    return text.translate(_CONTROL_CODES)


def short(text: str, limit: int) -> str:
    """Return the clean text as one line of at most `limit` characters."""
    line = " ".join(clean(text).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def cost(microusd: int | None) -> str:
    """Format an amount; None is an unknown price, which must not look like nothing."""
    return "cost unknown" if microusd is None else f"${microusd / 1_000_000:.4f}"


def plural(count: int, noun: str) -> str:
    """Return the count with its noun: `1 step`, `2 steps`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def age(moment: datetime, now: datetime | None = None) -> str:
    """Return roughly how long ago the moment was; a moment ahead of this clock counts as now."""
    past = max((now or datetime.now(UTC)) - moment, timedelta())
    for seconds, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        # From two units on, so that "1 h ago" never stands for nearly two hours.
        if past.total_seconds() >= 2 * seconds:
            return f"{past.total_seconds() // seconds:.0f} {unit} ago"
    return f"{past.total_seconds():.0f} s ago"


def duration(milliseconds: int) -> str:
    """Format a duration: `350 ms`, `1.5 s`."""
    return f"{milliseconds} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.1f} s"


def format_call(tool: str, arguments: Mapping[str, Any], path: Sequence[str] = ()) -> str:
    """Format a tool call: `search(query="...")`; of a run below with the path to it before. Nothing is hidden."""
    # The path as people read it: from the run that was asked to the run that waits.
    place = f"{visible(' / '.join(path))}: " if path else ""
    return place + call_text(tool, arguments)
