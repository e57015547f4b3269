"""Reservation of a model call: what all its attempts may spend together.

The run reserves once. Each attempt is given what the attempts before it have left.
"""

from pydantic import Field

from perdure.messages import Usage, Value
from perdure.prices import Price

from .tree import Amount


class Reservation(Value):
    """Amount that a model call may spend in all its attempts; only what is bounded is in it."""

    amount: Amount
    reads: int = Field(ge=0)
    """Upper bound of the tokens that one attempt reads."""
    one_hour_cache: bool = Field(default=False, exclude_if=lambda v: v is False)
    """True when tokens may be written to the cache for an hour, at the highest rate."""

    def longest_reply(self, spent: Usage, spent_microusd: int, price: Price | None) -> tuple[int, str] | None:
        """Return the longest reply that is left after what was spent, and the field that bounds it; None: no bound.

        It is below zero when not even the input can be paid.
        """
        left = self.amount
        bounds: list[tuple[int, str]] = []
        if left.input_tokens is not None and left.input_tokens - spent.all_input_tokens < self.reads:
            bounds.append((-1, "input_tokens"))
        if left.output_tokens is not None:
            bounds.append((left.output_tokens - spent.output_tokens, "output_tokens"))
        if left.total_tokens is not None:
            bounds.append((left.total_tokens - spent.total_tokens - self.reads, "total_tokens"))
        if left.cost_microusd is not None and price is not None:
            bounds.append((self._affordable(left.cost_microusd - spent_microusd, price), "cost_microusd"))
        # The smallest bound counts, and names what bounds the reply.
        return min(bounds, default=None)

    def _affordable(self, microusd: int, price: Price) -> int:
        """Return the output tokens that the money pays for, after the input at its full price."""
        rates = price.rates_for(self.reads)
        rest = microusd * 1_000_000 - self.reads * rates.highest_input(one_hour_cache=self.one_hour_cache)
        # Output that costs nothing has no bound, if the money left pays for the input.
        return rest // rates.output if rates.output else (2**31 if rest >= 0 else -1)
