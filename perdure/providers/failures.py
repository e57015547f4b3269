"""Classification of a provider's failures: HTTP statuses, overflow messages, the delay asked for."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from perdure.errors import ErrorKind

_KINDS: dict[int, ErrorKind] = {
    401: "authentication",
    402: "payment",
    403: "authentication",
    404: "not_found",
    408: "timeout",
    409: "overloaded",
    413: "too_large",
    424: "overloaded",  # a dependency of the provider failed
    429: "rate_limited",
    431: "too_large",
    499: "bug",  # "client closed request": we do not close a connection and wait for its answer
    501: "bad_request",
    504: "timeout",
}

# Few providers send a code when a conversation does not fit, so their words are matched.
_OVERFLOW_PHRASES = (
    "prompt is too long",
    "input is too long",
    "input length exceeds",
    "input and output tokens exceed",
    "exceed context limit",
    "exceed your context limit",
    "too many total text bytes",
    "maximum context length",
    "exceeds the available context size",
    "context_length_exceeded",
    "tokens must be at least 1, got -",
    "exceeds the maximum number of tokens",
    "maximum prompt length",
)

# Names of the bound of a reply, as providers' refusals have them.
_REPLY_BOUND = re.compile(
    r"max[_ ]?(?:completion[_ ]?|output[_ ]?|new[_ ]?)?tokens|maximum tokens"
    r"|(?:completion|output) tokens|in the completion"
)
_TOO_LARGE = re.compile(
    r"too (?:large|high|long|many)|exceed|greater than|larger than|at most|less than|must be <="
    r"|maximum|not fit|supported range|>"
)
_NUMBER = re.compile(r"(?<![\w.-])\d[\d,_]*")

# A longer delay would overflow `timedelta`. The run treats anything above ten minutes alike.
_LONGEST_DELAY_SECONDS = 1e9


def kind_of_status(status: int) -> ErrorKind:
    """Return the error kind of an HTTP status, for a failure that the provider does not explain better."""
    if status in _KINDS:
        return _KINDS[status]
    if status >= 500:
        return "overloaded"
    return "bad_request" if 400 <= status < 500 else "bug"


def is_context_overflow(message: str) -> bool:
    """Return whether the message says that the conversation does not fit the model's context window."""
    lowered = message.lower()
    return any(phrase in lowered for phrase in _OVERFLOW_PHRASES)


def reply_room(message: str, asked: int) -> int | None:
    """Return the longest reply that the refusal leaves room for, or None where it does not blame the reply's bound.

    `asked` is the bound that was sent. Providers tell in different words of three things: the model's longest reply,
    the context's size, and what the conversation takes of it. Zero or less: the conversation alone is too long.
    Half of `asked` where no number helps.
    """
    # Our own messages begin with the status.
    lowered = re.sub(r"^\d{3}\b", "", message.lower())
    if "budget_tokens" in lowered:  # thinking has a bound of its own, which is too large for the reply's
        return None
    if not (_REPLY_BOUND.search(lowered) and _TOO_LARGE.search(lowered)):
        return None
    numbers = [_int(found) for found in _NUMBER.findall(lowered)]
    context = _context_size(lowered)
    if context is None:
        # The model's longest reply: the largest number below what was asked for.
        return max((n for n in numbers if 1 < n < asked), default=asked // 2)
    rest = [n for n in numbers if n not in (context, asked)]
    conversation = _conversation_tokens(lowered, rest)
    return asked // 2 if conversation is None else context - conversation


_CONTEXT_SIZES = (
    re.compile(r"context (?:length|window|size)(?: of this model)?(?: is|:| of)? (?:only )?(\d[\d,_]*)"),
    re.compile(r"(\d[\d,_]*)(?: tokens)?(?: maximum)? context (?:length|window|size)"),
    re.compile(r"\d[\d,_]* ?\+ ?\d[\d,_]* ?> ?(\d[\d,_]*)"),
    re.compile(r"max_new_tokens\W* must be <= ?(\d[\d,_]*)"),
)
_CONVERSATIONS = (
    re.compile(r"(\d[\d,_]*)(?: tokens)? (?:in the )?(?:messages|prompt|input)\b(?! \+)"),
    re.compile(r"(\d[\d,_]*) (?:in the functions)"),
    re.compile(r"(?:prompt|input|request) (?:contains|has|of)(?: at least)? (\d[\d,_]*)"),
    re.compile(r"(\d[\d,_]*) `?inputs`? tokens"),
    re.compile(r"(\d[\d,_]*) ?\+ ?\d[\d,_]* ?>"),
)


def _context_size(text: str) -> int | None:
    found = next((m for m in (pattern.search(text) for pattern in _CONTEXT_SIZES) if m), None)
    return None if found is None else _int(found[1])


def _conversation_tokens(text: str, rest: Sequence[int]) -> int | None:
    """Return the tokens of the conversation, where the refusal tells them."""
    spans = {m.span(1): _int(m[1]) for pattern in _CONVERSATIONS for m in pattern.finditer(text)}
    return sum(spans.values()) if spans else min(rest, default=None)


def _int(digits: str) -> int:
    return int(re.sub("[,_]", "", digits))


def parse_retry_after(headers: Mapping[str, str], now: datetime | None = None) -> timedelta | None:
    """Return the delay that the response asks for, or None if it asks for none that can be read.

    Reads `retry-after-ms`, then `retry-after` in seconds or as a date. A date in the past is no delay.
    `headers` must find lower-case names.
    """
    seconds = _parse_number(headers.get("retry-after-ms"), scale=0.001)
    if seconds is None:
        seconds = _parse_number(headers.get("retry-after"))
    if seconds is not None:
        return timedelta(seconds=seconds)
    return _parse_date(headers.get("retry-after"), now or datetime.now(UTC))


def _parse_number(text: str | None, scale: float = 1.0) -> float | None:
    try:
        value = float(text or "") * scale
    except ValueError:
        return None
    # "nan" and "inf" are numbers to float(), and no delays.
    return max(0.0, min(value, _LONGEST_DELAY_SECONDS)) if math.isfinite(value) else None


def _parse_date(text: str | None, now: datetime) -> timedelta | None:
    try:
        date = parsedate_to_datetime(text or "")
    except ValueError:
        return None
    # "-0000" parses to a date without a zone; the header is defined in UTC.
    return max(timedelta(), date.replace(tzinfo=date.tzinfo or UTC) - now)


def one_line(text: object, limit: int | None = None) -> str:
    """Return the text on one line, as histories and lists want it, cut at `limit` characters if there is one.

    An error's message needs no limit: the activity shortens it, after it has masked the secrets in it.
    """
    return " ".join(str(text).split())[:limit]
