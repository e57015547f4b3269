"""Running count of what a model call costs: text, thinking and arguments alike.

The same count serves a call that ended, one that was cut, one that was stopped, and each heartbeat between. The
provider's final count is exact. Until it comes, what is missing is an upper bound of ours, marked as estimated.
"""

import time
from collections.abc import Callable

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
_HIDDEN_TOKENS_A_SECOND = 500
"""Tokens that a model thinks in a second, at most, where it does not show them."""


class CallCount:
    """Cost of a call so far. It assumes that the request was sent."""

    def __init__(self, request: ModelRequest, clock: Callable[[], float] = time.monotonic) -> None:
        self.request = request
        self.usage: Usage | None = None
        """Usage as the provider counted it, None until it is sent."""
        self.is_final = False
        """True when `usage` counts the whole reply."""
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
        """Note the provider's count of tokens; `final` when it counts the whole reply."""
        self.usage, self.is_final = usage, final

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
        if self.usage is not None and self.is_final:
            return self.usage
        known = self.usage
        if known is None or not known.all_input_tokens:
            known = Usage(input_tokens=self.input_tokens, output_tokens=known.output_tokens if known else 0)
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
    # OpenAI's reasoning models think by themselves and show nothing.
    by_itself = config.provider == "openai" and config.model.startswith(("o1", "o3", "o4", "gpt-5"))
    return config.thinking is not None or config.effort is not None or by_itself
