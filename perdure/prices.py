"""What models cost, as data: a versioned table, overridable, silent about models it does not know."""

import json
from datetime import date
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

from perdure.errors import DefinitionError
from perdure.messages import Usage


class Price(BaseModel):
    """Micro-dollars per million tokens: 3 dollars is 3_000_000."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    input: int = Field(ge=0)
    output: int = Field(ge=0)
    cache_read: int = Field(ge=0)
    cache_write: int = Field(ge=0)

    def cost_microusd(self, usage: Usage) -> int:
        """The price of that usage, rounded up to a micro-dollar."""
        total = (
            usage.input_tokens * self.input
            + usage.cache_read_tokens * self.cache_read
            + usage.cache_write_tokens * self.cache_write
            + usage.output_tokens * self.output
        )
        return -(-total // 1_000_000)


class Entry(BaseModel):
    """The price of the models whose "provider:model" matches a shell pattern, from a day on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    effective: date
    price: Price


class PriceTable(BaseModel):
    """Entries in order: the first that matches and is in effect counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str
    entries: tuple[Entry, ...]

    def find(self, model: str, today: date) -> Price | None:
        """The price of "provider:model" on that day; None when the table does not know it."""
        known = (e.price for e in self.entries if fnmatchcase(model, e.model) and e.effective <= today)
        return next(known, None)

    def over(self, other: "PriceTable") -> "PriceTable":
        """A table that asks this one first, then the other."""
        return PriceTable(version=f"{self.version}+{other.version}", entries=self.entries + other.entries)


@cache
def shipped_prices() -> PriceTable:
    """The table that comes with this version."""
    return PriceTable.model_validate_json(Path(__file__).with_name("prices.json").read_text())


def load_prices(path: Path | None) -> PriceTable:
    """The shipped table, with the entries of a file of the same form before it.

    Raises:
        DefinitionError: the file is missing or not of that form.

    """
    if path is None:
        return shipped_prices()
    try:
        return PriceTable.model_validate(json.loads(path.read_text())).over(shipped_prices())
    except (OSError, ValueError, RecursionError) as error:
        raise DefinitionError(f"price table {str(path)!r}: {error}") from None
