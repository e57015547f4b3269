"""Classification of a provider's failures: HTTP statuses, the bound of a reply, the delay asked for."""

import math
import re
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

from perdure.delays import sensible_delay
from perdure.errors import ErrorKind

from .wordings import is_context_overflow

__all__ = ["is_context_overflow", "kind_of_status", "one_line", "parse_retry_after", "reply_room"]

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
    499: "overloaded",  # "client closed request", said by a proxy: we did not close the connection
    501: "bad_request",
    504: "timeout",
}

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


def kind_of_status(status: int) -> ErrorKind:
    """Return the error kind of an HTTP status, for a failure that the provider does not explain better."""
    if status in _KINDS:
        return _KINDS[status]
    if status >= 500:
        return "overloaded"
    # A redirect, or an answer without content: no answer of a model.
    return "bad_request" if 400 <= status < 500 else "malformed_reply"


_FIRST_EPOCH_SECONDS = 1e9
"""Numbers from here on are times since 1970."""


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
    """Return the delay that the response asks for, or None if it asks for none that makes sense.

    Reads `retry-after-ms`, then `retry-after` in seconds or as a date. A date in the past is no delay.
    `headers` must find lower-case names.
    """
    now = now or datetime.now(UTC)
    millis = _parse_number(headers.get("retry-after-ms"))
    if millis is not None:
        return sensible_delay(millis / 1000)
    seconds = _parse_number(headers.get("retry-after"))
    if seconds is None:
        return _parse_date(headers.get("retry-after"), now)
    if seconds >= _FIRST_EPOCH_SECONDS:
        # Nobody asks for thirty years: it is the time of the next try, in seconds since 1970, or in milliseconds.
        since_epoch = seconds / 1000 if seconds >= 1000 * _FIRST_EPOCH_SECONDS else seconds
        return sensible_delay(since_epoch - now.timestamp())
    return sensible_delay(seconds)


def _parse_number(text: str | None) -> float | None:
    try:
        value = float(text or "")
    except ValueError:
        return None
    # "nan" and "inf" are numbers to float(), and no delays.
    return value if math.isfinite(value) else None


def _parse_date(text: str | None, now: datetime) -> timedelta | None:
    try:
        date = parsedate_to_datetime(text or "")
        # "-0000" parses to a date without a zone; the header is defined in UTC.
        return sensible_delay(date.replace(tzinfo=date.tzinfo or UTC) - now)
    except (ValueError, OverflowError):
        return None


def one_line(text: object, limit: int | None = None) -> str:
    """Return the text on one line, as histories and lists want it, cut at `limit` characters if there is one.

    An error's message needs no limit: the activity shortens it, after it has masked the secrets in it.
    """
    return " ".join(str(text).split())[:limit]
