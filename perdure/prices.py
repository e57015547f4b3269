"""Prices of models: a versioned table, which a file can override."""

import json
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from perdure.errors import DefinitionError
from perdure.messages import Usage


class Price(BaseModel):
    """Price of a model in micro-dollars per million tokens: 3 dollars are 3_000_000."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: int = Field(ge=0)
    output: int = Field(ge=0)
    cache_read: int = Field(ge=0)
    cache_write: int = Field(ge=0)

    def cost_microusd(self, usage: Usage) -> int:
        """Return the cost of the usage, rounded up to a micro-dollar."""
        total = (
            usage.input_tokens * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
        )
        return -(-total // 1_000_000)


class Entry(BaseModel):
    """Price of the models whose "provider:model" matches a shell pattern, from a day on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    effective: date
    price: Price


class PriceTable(BaseModel):
    """Entries in order: the first that matches and is in effect applies."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    entries: tuple[Entry, ...]

    def find(self, model: str, today: date) -> Price | None:
        """Return the price of "provider:model" on that day, or None for an unknown model."""
        matching = (e.price for e in self.entries if fnmatchcase(model, e.model) and e.effective <= today)
        return next(matching, None)

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
