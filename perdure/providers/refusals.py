"""Errors that a provider sends, read whatever the shape of their body, and their kinds. Pure.

Rules
1. The words of an error are kept, wherever they stand: in `error`, `error.message`, `detail`, `message`, in JSON within
   a text, in HTML, in plain text.
2. A code is more precise than a type, a type than a status, and all of them than words. Words decide only where the
   rest says no more than "your request is wrong" or "something failed".
3. An error that says nothing known is no bug of ours. In a stream the answer was cut; otherwise the status decides.
"""

import html
import json
import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Final, cast

from perdure.delays import sensible_delay
from perdure.errors import ErrorKind

from .failures import kind_of_status
from .wordings import is_account, is_context_overflow, is_filtered, is_payment, is_unknown_model

_MOST_WORDS: Final = 20_000
"""Characters of an error that are kept. The activity masks secrets in them, and shortens them then."""
_MOST_DEPTH: Final = 6

_NAMED: Final[dict[ErrorKind, str]] = {
    "payment": (
        "insufficient_quota billing_hard_limit_reached billing_not_active billing_error billing_disabled "
        "payment_required insufficient_balance insufficient_credits insufficient_funds credit_balance_too_low "
        "arrearage quota_exceeded_billing spend_limit_reached invalid_payment_instrument"
    ),
    "context_overflow": (
        "context_length_exceeded context_window_exceeded exceed_context_size_error model_context_window_exceeded "
        "string_above_max_length tokens_limit_reached max_prompt_tokens_exceeded context_overflow"
    ),
    "filtered": (
        "content_filter content_filtered content_policy_violation moderation_blocked responsible_ai_policy_violation "
        "data_inspection_failed content_exists_risk invalid_prompt safety_violations prohibited_content "
        "content_moderation moderation_error"
    ),
    "authentication": (
        "invalid_api_key authentication_error authentication permission_error permission_denied unauthenticated "
        "unauthorized forbidden access_denied account_deactivated invalid_authentication_error "
        "access_denied_exception unrecognized_client_exception expired_token_exception invalid_signature_exception"
    ),
    "not_found": "model_not_found not_found_error not_found deployment_not_found resource_not_found_exception",
    "rate_limited": (
        "rate_limit_exceeded rate_limit_error rate_limit_reached requests tokens too_many_requests resource_exhausted "
        "throttling_exception too_many_requests_exception engine_overloaded_rate_limit"
    ),
    "overloaded": (
        "overloaded_error overloaded server_error internal_server_error internal_error internal unavailable "
        "service_unavailable service_unavailable_error api_error conflict_error engine_overloaded "
        "internal_server_exception service_unavailable_exception model_error_exception model_not_ready_exception"
    ),
    "timeout": "timeout timeout_error request_timeout gateway_timeout deadline_exceeded model_timeout_exception",
    "stream_cut": "model_stream_error_exception aborted cancelled",
    "too_large": "request_too_large payload_too_large request_entity_too_large",
    "bad_request": (
        "invalid_request_error invalid_argument invalid_request bad_request bad_request_error failed_precondition "
        "unprocessable_entity validation_error validation_exception"
    ),
}


def normal_code(code: str) -> str:
    """Return the code as tables have it: providers spell one code in many ways."""
    return re.sub("[^a-z0-9]", "", code.lower())


_KIND_OF_CODE: Final[dict[str, ErrorKind]] = {
    normal_code(code): kind for kind, codes in _NAMED.items() for code in codes.split()
}
_DECISIVE: Final = frozenset({"payment", "context_overflow", "filtered"})
"""Kinds that no status tells of: a code for one of them is taken at its word."""
_VAGUE_STATUS: Final = frozenset({400, 422})
"""Statuses that a code may explain."""


@dataclass(frozen=True, kw_only=True)
class ProviderError:
    """An error as the provider told it."""

    words: str
    """Its words on as many lines as they came; empty where there are none."""
    codes: tuple[str, ...] = ()
    """Codes and types, the most precise first."""
    status: int | None = None
    """Status of the answer, or the one that the body of an error within a stream names."""
    delay: timedelta | None = None
    """Delay that the body asks for."""

    @property
    def message(self) -> str:
        """Status, code and words on one line."""
        code = next((code for code in self.codes if not code.isdigit()), "error")
        return f"{self.status or 'in the stream'} {code}: {self.words or _phrase(self.status)}"


def read_error(body: object, status: int | None = None) -> ProviderError:
    """Return the error that a body tells of: JSON of any shape, decoded or not, HTML, text, or nothing."""
    value = _decode(body)
    delay = _delay(value, 0)
    codes = tuple(dict.fromkeys(_codes(value, 0)))
    if status is None:
        numbers = (int(code) for code in codes if code.isdigit() and len(code) == 3)
        status = next((number for number in numbers if 400 <= number < 600), None)
    words = _words(value, 0)
    if not words and value and isinstance(value, dict | list):
        with suppress(RecursionError, ValueError):
            words = json.dumps(cast("object", value), ensure_ascii=False, default=str)
    return ProviderError(
        words=words[:_MOST_WORDS].strip(),
        codes=codes[:8],
        status=status,
        delay=delay,
    )


def kind_of_error(error: ProviderError, codes: Mapping[str, ErrorKind] | None = None) -> ErrorKind:
    """Return the kind of an error that the provider sent, never "bug".

    `codes` is the adapter's own table: its entries count more than a status.
    """
    own: dict[str, ErrorKind] = {normal_code(code): kind for code, kind in (codes or {}).items()}
    names = [normal_code(code) for code in error.codes]
    kind: ErrorKind | None = next((own[name] for name in names if name in own), None)
    if kind is None:
        named: list[ErrorKind] = [_KIND_OF_CODE[name] for name in names if name in _KIND_OF_CODE]
        kind = next((each for each in named if each in _DECISIVE), None) or _by_status(error, named)
    return _refine(kind, error)


def _by_status(error: ProviderError, named: list[ErrorKind]) -> ErrorKind:
    narrower: list[ErrorKind] = [kind for kind in named if kind != "bad_request"]
    precise = next(iter(narrower or named), None)
    if error.status is None:
        return precise or "stream_cut"
    if error.status in _VAGUE_STATUS and precise is not None:
        return precise
    return kind_of_status(error.status)


def _refine(kind: ErrorKind, error: ProviderError) -> ErrorKind:
    """Return the kind that the words tell of, where the kind so far is vague: see rule 2."""
    words = error.words
    if kind in ("bad_request", "too_large", "overloaded", "stream_cut") and is_context_overflow(words):
        return "context_overflow"
    # A quota with a delay is a rate: some providers use the same words for both.
    waits = kind == "rate_limited" and error.delay is not None
    if kind in ("bad_request", "authentication", "rate_limited") and not waits and is_payment(words):
        return "payment"
    if kind == "authentication" and is_account(words):
        return kind
    if kind in ("bad_request", "authentication", "overloaded", "stream_cut") and is_filtered(words):
        return "filtered"
    if kind == "bad_request":
        return _explained_request(words)
    return kind


def _explained_request(words: str) -> ErrorKind:
    if is_account(words):
        return "authentication"
    if is_unknown_model(words):
        return "not_found"
    return "too_large" if _TOO_LARGE.search(words.lower()) else "bad_request"


_TOO_LARGE: Final = re.compile(
    r"(?:request|payload|body|entity)(?: entity| body| size| is)* (?:is )?(?:too large|exceeds)"
)

# -- reading


def words_of_body(body: object) -> str:
    """Return the words in the body of an error, whatever its shape."""
    return read_error(body).words


def _decode(body: object) -> object:
    if isinstance(body, bytes):
        body = body.decode(errors="replace")
    if not isinstance(body, str):
        return body
    text = body.strip()
    if text[:1] in ("{", "["):
        try:
            return json.loads(text)
        except (ValueError, RecursionError):
            return text
    return text


_WORD_KEYS: Final = (
    *(
        "message",
        "Message",
        "errorMessage",
        "error_message",
        "error",
        "detail",
        "details",
        "msg",
        "description",
    ),
    *("error_description", "reason", "errors", "title", "text", "raw", "failed_generation"),
)
_MORE_KEYS: Final = ("metadata", "innererror", "inner_error", "cause", "raw")
"""Keys below which gateways put what the server behind them has said."""


def _words(value: object, depth: int) -> str:
    if depth > _MOST_DEPTH:
        return ""
    match value:
        case str():
            return _words_of_text(value, depth)
        case list():
            items = cast("list[object]", value)
            return "; ".join(dict.fromkeys(filter(None, (_words(item, depth + 1) for item in items[:20]))))
        case dict():
            fields = cast("dict[object, object]", value)
            first = next((found for key in _WORD_KEYS if (found := _words(fields.get(key), depth + 1))), "")
            more = (_words(fields.get(key), depth + 1) for key in _MORE_KEYS)
            rest = [text for text in more if text and text not in first]
            return "; ".join([*([first] if first else []), *rest])
        case _:
            return ""


def _words_of_text(text: str, depth: int) -> str:
    inner = _decode(text)
    if not isinstance(inner, str):
        return _words(inner, depth + 1) or text
    if re.match(r"\s*<(?:!doctype|html|head|body|\?xml)", inner, re.IGNORECASE):
        return _text_of_html(inner[:200_000])
    return inner


def _text_of_html(page: str) -> str:
    page = re.sub(r"(?is)<(script|style)\b[^>]*>.*?</\1>", " ", page)
    return " ".join(html.unescape(re.sub(r"<[^>]*>", " ", page)).split())


_CODE_KEYS: Final = (
    "error_code",
    "code",
    "Code",
    "__type",
    "type",
    "status",
    "status_code",
    "reason",
    "object",
)
_BELOW: Final = ("details", "innererror", "inner_error", "error", "metadata", "detail")


def _codes(value: object, depth: int) -> Iterator[str]:
    """Yield the codes in a body, those further inside first: they are more precise."""
    if isinstance(value, list) and depth <= _MOST_DEPTH:
        for item in cast("list[object]", value)[:20]:
            yield from _codes(item, depth + 1)
    if not isinstance(value, dict) or depth > _MOST_DEPTH:
        return
    fields = cast("dict[object, object]", value)
    for key in _BELOW:
        yield from _codes(fields.get(key), depth + 1)
    for key in _CODE_KEYS:
        code = fields.get(key)
        if isinstance(code, str | int) and not isinstance(code, bool) and 0 < len(str(code)) <= 100:
            # AWS writes a namespace before its codes.
            yield str(code).rpartition("#")[2]


def _delay(value: object, depth: int) -> timedelta | None:
    """Return the delay in a body, as Google's APIs write it: `"retryDelay": "34s"`."""
    if depth > _MOST_DEPTH:
        return None
    if isinstance(value, list):
        items = cast("list[object]", value)
        return next((found for item in items[:20] if (found := _delay(item, depth + 1)) is not None), None)
    if not isinstance(value, dict):
        return None
    fields = cast("dict[str, Any]", value)
    delay = fields.get("retryDelay")
    if isinstance(delay, str) and re.fullmatch(r"\d{1,12}(\.\d{1,9})?s", delay):
        return sensible_delay(float(delay[:-1]))
    return next((found for each in fields.values() if (found := _delay(each, depth + 1)) is not None), None)


def _phrase(status: int | None) -> str:
    try:
        return f"no words ({HTTPStatus(status or 0).phrase})"
    except ValueError:
        return "no words"
