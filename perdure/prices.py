"""Prices of models: a versioned table, which a file can override.

The shipped table, `prices.json`, is generated from the package genai-prices by `make prices`. A run pins the
prices of the day on which it starts.
"""

import json
import re
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from perdure.errors import DefinitionError
from perdure.messages import Usage


class Rates(BaseModel):
    """Rates in micro-dollars per million tokens: 3 dollars are 3_000_000."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: int = Field(ge=0)
    output: int = Field(ge=0)
    cache_read: int = Field(ge=0)
    cache_write: int = Field(ge=0)
    """Rate of cache writes that live for five minutes."""
    cache_write_1h: int | None = Field(default=None, ge=0, exclude_if=lambda v: v is None)
    """Rate of cache writes that live for an hour; None: twice the input rate."""

    @property
    def one_hour_write(self) -> int:
        """Rate of cache writes that live for an hour."""
        return 2 * self.input if self.cache_write_1h is None else self.cache_write_1h

    def highest_input(self, *, one_hour_cache: bool) -> int:
        """Return the highest rate that an input token can cost: what a budget must reserve for it."""
        return max(self.input, self.cache_write, self.one_hour_write if one_hour_cache else 0)

    def cost_microusd(self, usage: Usage) -> int:
        """Return the cost of the usage at these rates, rounded up to a micro-dollar."""
        total = (
            usage.input_tokens * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.cache_write_1h_tokens * self.one_hour_write
            + usage.output_tokens * self.output
        )
        # Rounded up, in integers: a sum of costs must never be less than what was spent.
        return -(-total // 1_000_000)


class Tier(Rates):
    """Rates of calls with a long input. They apply to all tokens of such a call."""

    above_input_tokens: int = Field(ge=1)


class Price(Rates):
    """Price of a model: its rates, and the rates of calls with a long input."""

    tiers: tuple[Tier, ...] = Field(default=(), exclude_if=lambda v: not v)
    """Tiers, by rising threshold."""

    def rates_for(self, input_tokens: int) -> Rates:
        """Return the rates of a call that reads so many tokens, cached ones included."""
        reached = [tier for tier in self.tiers if input_tokens > tier.above_input_tokens]
        return reached[-1] if reached else self

    def cost_microusd(self, usage: Usage) -> int:
        """Return the cost of a call's usage, rounded up to a micro-dollar.

        For the usage of several calls together it is an upper bound: their sum may reach a tier that none of
        them has reached.
        """
        rates = self.rates_for(usage.all_input_tokens)
        # `Rates` asks for its own method: a price without tiers is its own rates.
        return Rates.cost_microusd(rates, usage)


class Entry(BaseModel):
    """Price of the models whose "provider:model" matches a shell pattern, from a day on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str | tuple[str, ...]
    """A pattern, or several of which one must match."""
    # An announced price can be in the table before it applies.
    effective: date
    price: Price
    batch: Price | None = Field(default=None, exclude_if=lambda v: v is None)
    """Price of calls in a provider's batch API; None: unknown."""

    def matches(self, model: str, today: date) -> bool:
        """Check whether the entry prices that model on that day."""
        patterns = (self.model,) if isinstance(self.model, str) else self.model
        return self.effective <= today and any(_matches(model, pattern) for pattern in patterns)


def _matches(model: str, pattern: str) -> bool:
    # `fnmatch` compiles each pattern, which takes a quarter of a second for the whole table. So a pattern
    # whose fixed text is not in the name is skipped first.
    start, *rest = _fixed_texts(pattern)
    return model.startswith(start) and all(text in model for text in rest) and fnmatchcase(model, pattern)


@cache
def _fixed_texts(pattern: str) -> list[str]:
    """Return texts that a name must have to match: first its beginning, then parts of the rest."""
    before_set, bracket, _ = pattern.partition("[")
    texts = re.split(r"[*?]+", before_set)
    # What follows a set of characters is left to `fnmatch`; so is the text right before it.
    return texts[:1] if bracket else texts


class PriceTable(BaseModel):
    """Entries in order: the first that matches and is in effect applies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    entries: tuple[Entry, ...]

    def find(self, model: str, today: date, *, batch: bool = False) -> Price | None:
        """Return the price of "provider:model" on that day, or None for an unknown model."""
        entry = next((entry for entry in self.entries if entry.matches(model, today)), None)
        if entry is None:
            return None
        return entry.batch if batch else entry.price

    def over(self, base: "PriceTable") -> "PriceTable":
        """Return a table with the entries of this table before those of `base`."""
        return PriceTable(version=f"{self.version}+{base.version}", entries=self.entries + base.entries)


@cache
def shipped_prices() -> PriceTable:
    """Return the table that comes with this version of the package."""
    return PriceTable.model_validate_json(Path(__file__).with_name("prices.json").read_text())


def load_prices(path: Path | None) -> PriceTable:
    """Return the shipped table, with the entries of a file of the same form before its own.

    Raises:
        DefinitionError: the file is missing or has another form.

    """
    if path is None:
        return shipped_prices()
    try:
        return PriceTable.model_validate(json.loads(path.read_text())).over(shipped_prices())
    except (OSError, ValueError, RecursionError) as error:
        raise DefinitionError(f"price table {str(path)!r}: {error}") from None
