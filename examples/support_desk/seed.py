"""What the shop sells and has sold: made by arithmetic, so that every copy of it is the same."""

from collections.abc import Iterator
from datetime import date, timedelta
from typing import NamedTuple

ORDERS = 50

CUSTOMERS = [
    ("ann.lindqvist@example.com", "Ann Lindqvist", "Uppsala"),
    ("bram.devos@example.com", "Bram De Vos", "Ghent"),
    ("chiara.conti@example.com", "Chiara Conti", "Bologna"),
    ("daniel.okafor@example.com", "Daniel Okafor", "Leeds"),
    ("elif.yilmaz@example.com", "Elif Yilmaz", "Izmir"),
    ("farid.haddad@example.com", "Farid Haddad", "Lyon"),
    ("grace.murphy@example.com", "Grace Murphy", "Galway"),
    ("hiro.tanaka@example.com", "Hiro Tanaka", "Kobe"),
    ("ines.pereira@example.com", "Ines Pereira", "Porto"),
    ("jonas.weber@example.com", "Jonas Weber", "Leipzig"),
    ("kasia.nowak@example.com", "Kasia Nowak", "Gdansk"),
    ("liam.walker@example.com", "Liam Walker", "Portland"),
]

PRODUCTS = [
    ("LAMP-01", "Desk lamp", 4_900),
    ("CHAIR-02", "Oak chair", 12_900),
    ("MUG-03", "Stoneware mug", 1_450),
    ("RUG-04", "Wool rug", 18_500),
    ("CLOCK-05", "Wall clock", 3_800),
    ("SHELF-06", "Birch shelf", 7_250),
    ("TOWEL-07", "Linen towel", 1_990),
    ("KETTLE-08", "Enamel kettle", 5_600),
    ("VASE-09", "Glass vase", 2_750),
]

CARRIERS = ["Northway", "Parcelo", "BlueVan"]

# The first orders are those that the demo and the README speak of.
_FIRST = [
    ("ann.lindqvist@example.com", "shipped"),
    ("ann.lindqvist@example.com", "delivered"),
    ("bram.devos@example.com", "shipped"),
    ("chiara.conti@example.com", "delivered"),
]
_STATUSES = ["delivered", "shipped", "processing", "delivered", "cancelled"]


class SeedItem(NamedTuple):
    sku: str
    name: str
    quantity: int
    price_cents: int


class SeedOrder(NamedTuple):
    id: str
    email: str
    placed_on: str
    status: str
    carrier: str
    items: list[SeedItem]


def orders() -> Iterator[SeedOrder]:
    """The orders, the oldest first: W2378156, W3612733, W4847310, W6081887, ..."""
    for number in range(ORDERS):
        email, status = _who_and_where(number)
        yield SeedOrder(
            id=f"W{1_000_000 + (1_378_156 + number * 1_234_577) % 9_000_000}",
            email=email,
            placed_on=(date(2026, 3, 1) + timedelta(days=2 * number)).isoformat(),
            status=status,
            carrier=CARRIERS[number % len(CARRIERS)],
            items=[_item(number * 4), _item(number * 4 + 5)][: 1 + number % 2],
        )


def _who_and_where(number: int) -> tuple[str, str]:
    if number < len(_FIRST):
        return _FIRST[number]
    email, _, _ = CUSTOMERS[1 + number % (len(CUSTOMERS) - 1)]
    return email, _STATUSES[number % len(_STATUSES)]


def _item(number: int) -> SeedItem:
    sku, name, price_cents = PRODUCTS[number % len(PRODUCTS)]
    return SeedItem(sku, name, 1 + number % 3, price_cents)
