"""Generator of perdure/prices.json from the package genai-prices; `make prices` runs it.

The table is pinned in the repository, so that prices change by a reviewed commit only. A test compares it
with the output of this generator.
"""

import json
import re
import sys
from collections.abc import Iterator, Sequence
from datetime import date
from decimal import Decimal
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from genai_prices import types
from genai_prices.data import providers

from perdure.prices import Entry, Price, PriceTable, Tier

TABLE: Final = Path(__file__).parents[1] / "perdure/prices.json"
OUR_NAMES: Final = {
    "anthropic": ("anthropic",),
    "aws": ("bedrock",),
    "deepseek": ("deepseek",),
    "fireworks": ("fireworks",),
    "google": ("gemini",),
    "groq": ("groq",),
    "mistral": ("mistral",),
    "openai": ("openai", "responses"),
    "together": ("together",),
    "x-ai": ("xai",),
}
"""Our names of the providers whose prices the table has, by their names in genai-prices.

Not OpenRouter, whose list is twice as long as all the others. Not Azure, where everybody names their deployments.
"""
_ALWAYS: Final = date(2020, 1, 1)
OWN_ENTRIES: Final = (
    Entry(
        model="scripted:*",
        effective=_ALWAYS,
        price=Price(input=3_000_000, output=15_000_000, cache_read=300_000, cache_write=3_750_000),
    ),
)
"""Entries that genai-prices does not have, or has otherwise. They come first, so they win."""

# Models for sound and pictures are billed in units that a `Price` does not have. Sound that is only read is no
# matter: no message holds any.
_OTHER_UNITS: Final = re.compile("output_audio|image|video|mchars")
_DIGITS: Final = "[0-9]"
_NO_SPEECH: Final = "^(?!.*-[tT][tT][sS](?:$|-))"
"""Exception for models that speak, which no agent can use."""


def generate() -> str:
    """Return the text of perdure/prices.json: an entry a line, so that a change is easy to review."""
    table = PriceTable(version=f"genai-prices {version('genai-prices')}", entries=(*OWN_ENTRIES, *_entries()))
    lines = [f"  {entry.model_dump_json(exclude_defaults=True)}" for entry in table.entries]
    head = json.dumps(table.version)
    return f'{{"version": {head}, "entries": [\n' + ",\n".join(lines) + "\n]}\n"


def _entries() -> Iterator[Entry]:
    for provider in providers:
        if provider.id in OUR_NAMES:
            for model in provider.models:
                yield from _entries_of(OUR_NAMES[provider.id], model)


def _entries_of(names: Sequence[str], model: types.ModelInfo) -> Iterator[Entry]:
    found = tuple(_patterns(model.match))
    patterns = tuple(f"{name}:{pattern}" for name in names for pattern in found)
    batch_rates = [v.prices for v in model.price_variants or [] if v.when == {"processing": "batch"}]
    # The newest price comes first, since our table takes the first entry that is in effect.
    for effective, rates in sorted(_dated_rates(model), key=lambda dated: dated[0], reverse=True):
        price = _price(_named_rates(rates))
        # A rate that the batch API does not state is that of other calls.
        batch = _price(_named_rates(rates) | _named_rates(batch_rates[-1])) if batch_rates else None
        if price is not None:
            yield Entry(
                model=patterns[0] if len(patterns) == 1 else patterns,
                effective=effective,
                price=price,
                batch=batch,
            )


def _dated_rates(model: types.ModelInfo) -> Iterator[tuple[date, types.ModelPrice]]:
    if isinstance(model.prices, types.ModelPrice):
        yield _ALWAYS, model.prices
        return
    for conditional in model.prices:
        if isinstance(conditional.constraint, types.TimeOfDateConstraint):
            continue  # a discount at night: our costs are upper bounds
        yield _start_of(conditional.constraint), conditional.prices


def _start_of(constraint: Any) -> date:
    if constraint is None:
        return _ALWAYS
    if not isinstance(constraint, types.StartDateConstraint):
        raise TypeError(f"the table has no place for {constraint!r}")
    start: date = constraint.start_date
    return start


def _named_rates(rates: types.ModelPrice) -> dict[str, Any]:
    return {name: value for name, value in vars(rates).items() if value is not None}


def _price(named: dict[str, Any]) -> Price | None:
    """Return our form of the rates; None for a model that does not read and write text alone."""
    if "input_mtok" not in named or "output_mtok" not in named or any(map(_OTHER_UNITS.search, named)):
        return None
    starts = {tier.start for value in named.values() for tier in getattr(value, "tiers", ())}
    tiers = [Tier(above_input_tokens=start, **_rates(named, start)) for start in sorted(starts)]
    return Price(**_rates(named, 0), tiers=tuple(tiers))


def _rates(named: dict[str, Any], input_tokens: int) -> dict[str, int]:
    def rate(name: str, otherwise: str) -> int:
        return _microusd(named.get(name, named[otherwise]), input_tokens)

    rates = {
        "input": rate("input_mtok", "input_mtok"),
        "output": rate("output_mtok", "output_mtok"),
        # Without a rate of its own, what the cache saves or holds is billed as input.
        "cache_read": rate("cache_read_mtok", "input_mtok"),
        "cache_write": rate("cache_write_mtok", "input_mtok"),
    }
    if "cache_write_1h_mtok" in named:
        rates["cache_write_1h"] = rate("cache_write_1h_mtok", "input_mtok")
    return rates


def _microusd(value: Decimal | types.TieredPrices, input_tokens: int) -> int:
    if isinstance(value, types.TieredPrices):
        prices = [value.base, *(tier.price for tier in value.tiers if tier.start <= input_tokens)]
        value = prices[-1]
    microusd = value * 1_000_000
    if microusd != int(microusd):
        raise ValueError(f"{value} dollars are no whole micro-dollars")
    return int(microusd)


def _patterns(clause: Any) -> Iterator[str]:
    """Yield shell patterns that together match what the clause matches."""
    match clause:
        case types.ClauseOr():
            for part in clause.or_:
                yield from _patterns(part)
        case types.ClauseAnd(and_=[wanted, types.ClauseRegex(regex=regex)]) if regex == _NO_SPEECH:
            yield from _patterns(wanted)
        case types.ClauseEquals():
            yield clause.equals
        case types.ClauseStartsWith():
            yield f"{clause.starts_with}*"
        case types.ClauseEndsWith():
            yield f"*{clause.ends_with}"
        case types.ClauseContains():
            yield f"*{clause.contains}*"
        case types.ClauseRegex():
            yield _pattern_of(clause.regex)
        case _:
            raise TypeError(f"no shell pattern matches what {clause!r} matches")


def _pattern_of(regex: str) -> str:
    """Return the shell pattern of a regular expression that is fixed text with digits and character sets."""
    text = regex.removeprefix("^").removesuffix("$").replace(r"\.", ".")
    pattern = re.sub(r"\\d(?:\{(\d)\})?", lambda count: _DIGITS * int(count[1] or 1), text)
    end = "$" if regex.endswith("$") else ""
    if f"^{text}{end}".replace(".", r"\.") != regex or re.search(r"[\\(){}+?|]", pattern):
        raise ValueError(f"no shell pattern matches what {regex!r} matches")
    return pattern if end else f"{pattern}*"


if __name__ == "__main__":
    TABLE.write_text(generate())
    sys.stdout.write(f"{TABLE.name}: {len(TABLE.read_text().splitlines()) - 2} entries\n")
