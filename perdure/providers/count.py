"""Running count of what a model call costs: text, thinking and arguments alike.

The same count serves a call that ended, one that was cut, one that was stopped, and each heartbeat between. The
provider's final count is exact. Until it comes, what is missing is an upper bound of ours, marked as estimated.
"""

import math
import re
import time
from collections.abc import Callable
from typing import Final

from perdure.messages import Usage
from perdure.model import ModelConfig, ModelRequest
from perdure.tokens import text_tokens

from .conversation import estimate_input_tokens

_MOST_UNCOUNTED = 16 * 1024
"""Characters that are kept as pieces before they are counted."""
_CALL_TOKENS = 64
"""Tokens of a tool call beside its arguments."""
_IN_FLIGHT_TOKENS = 64
"""Tokens that were written, and billed, when the line was cut, and that never arrived."""
_REASONS = re.compile(r"o\d|gpt-([5-9]|\d\d)")
"""Names of OpenAI's models that reason."""
_HIDDEN_TOKENS_A_SECOND = 500
"""Tokens that a model thinks in a second, at most, where it does not show them."""

_MOST_TOKENS: Final = 10**9
"""No call reads or writes as much. A larger count would stay in sums and prices for ever."""


def read_count(value: object) -> int | None:
    """Return a count of tokens as a provider sent it, or None where it makes no sense.

    A fraction is rounded up, a number in a text is read. What is negative, endless or no number says nothing.
    """
    if isinstance(value, str) and len(value) <= 20:
        try:
            value = float(value)
        except ValueError:
            return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    # NaN fails both comparisons.
    return math.ceil(value) if 0 <= value <= _MOST_TOKENS else None


class CallCount:
    """Cost of a call so far. It assumes that the request was sent."""

    def __init__(self, request: ModelRequest, clock: Callable[[], float] = time.monotonic) -> None:
        self.request = request
        self.usage: Usage | None = None
        """Usage as the provider counted it, None until it is sent."""
        self.is_final = False
        """True when `usage` counts the whole reply."""
        self._knows_input = self._knows_output = False
        self._clock = clock
        self._began = clock()
        self._input: int | None = None
        self._pieces: list[str] = []
        self._length = 0
        self._tokens = 0

    def write(self, piece: str, *, begins_call: bool = False) -> None:
        """Count a piece that the model has written, whatever it belongs to."""
        if begins_call:
            self._tokens += _CALL_TOKENS
        self._pieces.append(piece)
        self._length += len(piece)
        # Counted in long pieces, not in those of the stream: the estimate rounds up each time.
        if self._length >= _MOST_UNCOUNTED:
            self._tokens += text_tokens("".join(self._pieces))
            self._pieces, self._length = [], 0

    def count(self, usage: Usage, *, final: bool) -> None:
        """Note the provider's count of tokens; `final` when it counts the whole reply.

        A count that makes no sense is not taken: what is missing then is estimated.
        """
        fields = usage.__dict__
        self.count_tokens(
            final=final,
            input_tokens=fields.get("input_tokens", 0),
            cache_read=fields.get("cache_read_tokens", 0),
            cache_write=fields.get("cache_write_tokens", 0),
            cache_write_1h=fields.get("cache_write_1h_tokens", 0),
            output_tokens=fields.get("output_tokens", 0),
        )
        if usage.estimated and self.usage is not None:
            self.usage = self.usage.model_copy(update={"estimated": True})

    def count_tokens(
        self,
        *,
        final: bool,
        input_tokens: object = None,
        output_tokens: object = None,
        cache_read: object = 0,
        cache_write: object = 0,
        cache_write_1h: object = 0,
    ) -> None:
        """Note counts as the provider sent them, whatever they are; `final` when they count the whole reply.

        `input_tokens` excludes what the cache read or wrote, and `cache_write` what is kept for an hour. None, or a
        count that makes no sense, is missing, and estimated in its place.
        """
        read, written = read_count(input_tokens), read_count(output_tokens)
        self._knows_input, self._knows_output = read is not None, written is not None
        self.usage = Usage(
            input_tokens=read or 0,
            cache_read_tokens=read_count(cache_read) or 0,
            cache_write_tokens=read_count(cache_write) or 0,
            cache_write_1h_tokens=read_count(cache_write_1h) or 0,
            output_tokens=written or 0,
        )
        self.is_final = final

    @property
    def input_tokens(self) -> int:
        """Upper bound of what the request has the model read."""
        if self._input is None:
            self._input = estimate_input_tokens(self.request)
        return self._input

    def cost(self, *, is_whole: bool = False) -> Usage:
        """Return the cost of the call so far, never below what the provider counts.

        `is_whole`: the reply came to its end, so nothing of it can be in flight.
        """
        known = self.usage
        if known is not None and self.is_final and self._knows_input and self._knows_output:
            return known
        if known is None or not (known.all_input_tokens or (self.is_final and self._knows_input)):
            known = Usage(input_tokens=self.input_tokens, output_tokens=known.output_tokens if known else 0)
        if self.is_final and self._knows_output:
            return known.model_copy(update={"estimated": True})
        written = self._tokens + text_tokens("".join(self._pieces))
        in_flight = 0 if is_whole else _IN_FLIGHT_TOKENS
        # The reply's bound holds for what nobody sees; what was seen was written, whatever the bound.
        unseen = min(written + self._hidden_tokens() + in_flight, self.request.max_tokens)
        # The largest: a provider's count from the start of a reply may be 1.
        output = max(known.output_tokens, written, unseen)
        return known.model_copy(update={"output_tokens": output, "estimated": True})

    def _hidden_tokens(self) -> int:
        """Return what the model may have thought without showing it: providers bill the thought, not the summary."""
        if not thinks_unseen(self.request.config):
            return 0
        return int((self._clock() - self._began) * _HIDDEN_TOKENS_A_SECOND)

    def upper_bound(self) -> Usage:
        """Return the most that the call can have cost by its end, if nothing more is heard of it."""
        if self.is_final:
            return self.cost()
        known = self.cost()
        output = max(known.output_tokens, self.request.max_tokens)
        return known.model_copy(update={"output_tokens": output})


def thinks_unseen(config: ModelConfig) -> bool:
    """Return whether the model may think without showing all of it."""
    if config.thinking == "off":
        return False
    return config.thinking is not None or config.effort is not None or _thinks_by_itself(config)


def _thinks_by_itself(config: ModelConfig) -> bool:
    """Return whether the model thinks unasked, and shows nothing of it."""
    match config.provider:
        case "openai" | "responses":
            return _REASONS.match(config.model) is not None
        case "azure":
            # A deployment may have any name.
            return not config.model.startswith(("gpt-3", "gpt-4"))
        case "gemini":
            return not config.model.startswith(("gemini-1", "gemini-2.0"))
        case _:
            return False
