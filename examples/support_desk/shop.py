"""The shop's database: customers, orders, notes, refunds, and a ledger of what the agent did to them.

Plain SQLite. Nothing in this file knows of agents; what it asks of its callers is a key for every
write, the same when a write is tried again, so that it can tell a repetition from a second wish.
"""

import os
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import seed

_SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE customers (email TEXT PRIMARY KEY, name TEXT NOT NULL, city TEXT NOT NULL);
CREATE TABLE orders (
    id TEXT PRIMARY KEY,
    email TEXT NOT NULL REFERENCES customers,
    placed_on TEXT NOT NULL,
    status TEXT NOT NULL,
    carrier TEXT NOT NULL
);
CREATE TABLE items (
    order_id TEXT NOT NULL REFERENCES orders,
    sku TEXT NOT NULL,
    name TEXT NOT NULL,
    quantity INTEGER NOT NULL,
    price_cents INTEGER NOT NULL
);
CREATE TABLE notes (key TEXT NOT NULL UNIQUE, order_id TEXT NOT NULL REFERENCES orders, text TEXT NOT NULL);
CREATE TABLE refunds (
    key TEXT NOT NULL UNIQUE,
    order_id TEXT NOT NULL REFERENCES orders,
    amount_cents INTEGER NOT NULL CHECK (amount_cents > 0),
    reason TEXT NOT NULL
);
CREATE TABLE ledger (
    key TEXT PRIMARY KEY,
    tool TEXT NOT NULL,
    order_id TEXT NOT NULL,
    begun INTEGER NOT NULL DEFAULT 1,
    changes INTEGER NOT NULL DEFAULT 0
);
"""


class UnknownOrder(LookupError):
    """There is no such order."""


class RefundRefused(ValueError):
    """The shop does not pay that."""


@dataclass(frozen=True, kw_only=True)
class Customer:
    email: str
    name: str
    city: str


@dataclass(frozen=True, kw_only=True)
class Item:
    name: str
    quantity: int
    price_cents: int


@dataclass(frozen=True, kw_only=True)
class Order:
    id: str
    email: str
    placed_on: str
    status: str
    carrier: str
    city: str
    items: list[Item]
    notes: list[str]
    total_cents: int
    refunded_cents: int


@dataclass(frozen=True, kw_only=True)
class Refund:
    order_id: str
    amount_cents: int
    reason: str
    already_made: bool = False
    """The key was known: this is the refund of an earlier attempt, and no second one was made."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A line of the ledger: one tool call, however many attempts it took."""

    key: str
    tool: str
    order_id: str
    begun: int
    """How often the tool's function was entered with this key."""
    changes: int
    """How often it changed the database."""


class Shop:
    """The database at a path; made and filled when it is not there. Any number of processes may use it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.exists():
            _create(path)

    def customer(self, email: str) -> Customer | None:
        with self._open() as db:
            row = db.execute("SELECT * FROM customers WHERE email = ?", [email.strip().lower()]).fetchone()
        return Customer(**row) if row else None

    def orders_of(self, email: str) -> list[Order]:
        """Their orders, the newest first."""
        with self._open() as db:
            wanted = "SELECT id FROM orders WHERE email = ? ORDER BY placed_on DESC"
            return [_order(db, row["id"]) for row in db.execute(wanted, [email.strip().lower()]).fetchall()]

    def order(self, order_id: str) -> Order:
        """Raises UnknownOrder."""
        with self._open() as db:
            return _order(db, order_id)

    def begin(self, tool: str, order_id: str, *, key: str) -> None:
        """Count an attempt in the ledger."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO ledger (key, tool, order_id) VALUES (?, ?, ?) "
                "ON CONFLICT (key) DO UPDATE SET begun = begun + 1",
                [key, tool, order_id],
            )

    def add_note(self, order_id: str, text: str, *, key: str) -> bool:
        """Add a note; False when an earlier attempt had added it."""
        self.begin("add_note", order_id, key=key)
        with self._transaction() as db:
            order = _order(db, order_id)
            wanted = "INSERT INTO notes VALUES (?, ?, ?) ON CONFLICT (key) DO NOTHING"
            added = db.execute(wanted, [key, order.id, text]).rowcount == 1
            if added:
                db.execute("UPDATE ledger SET changes = changes + 1 WHERE key = ?", [key])
            return added

    def refund(self, order_id: str, amount_cents: int | None, reason: str, *, key: str) -> Refund:
        """Pay back that much, or all that is left. Raises UnknownOrder and RefundRefused."""
        self.begin("refund_order", order_id, key=key)
        with self._transaction() as db:
            made = db.execute("SELECT * FROM refunds WHERE key = ?", [key]).fetchone()
            if made:
                return replace(_refund(made), already_made=True)
            order = _order(db, order_id)
            left = order.total_cents - order.refunded_cents
            amount = left if amount_cents is None else amount_cents
            if not 0 < amount <= left:
                raise RefundRefused(f"{amount} cents cannot be refunded on {order.id}: {left} cents are left")
            db.execute("INSERT INTO refunds VALUES (?, ?, ?, ?)", [key, order.id, amount, reason])
            db.execute("UPDATE ledger SET changes = changes + 1 WHERE key = ?", [key])
            return Refund(order_id=order.id, amount_cents=amount, reason=reason)

    def refunds(self, order_id: str) -> list[Refund]:
        with self._open() as db:
            rows = db.execute("SELECT * FROM refunds WHERE order_id = ?", [order_id]).fetchall()
        return [_refund(row) for row in rows]

    def ledger(self, order_id: str) -> list[Entry]:
        """What was done about an order, in the order in which it was begun."""
        with self._open() as db:
            wanted = (
                "SELECT key, tool, order_id, begun, changes FROM ledger WHERE order_id = ? ORDER BY rowid"
            )
            return [Entry(**row) for row in db.execute(wanted, [order_id]).fetchall()]

    @contextmanager
    def _open(self) -> Generator[sqlite3.Connection]:
        with closing(sqlite3.connect(self.path, timeout=30, isolation_level=None)) as db:
            db.row_factory = sqlite3.Row
            yield db

    @contextmanager
    def _transaction(self) -> Generator[sqlite3.Connection]:
        """All of it or nothing, and one at a time over all processes."""
        with self._open() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")  # not reached after an error: closing rolls back


def open_shop() -> Shop:
    """The shop at SUPPORT_DESK_DB, or in PERDURE_HOME, or in `.perdure` of the working directory."""
    home = Path(os.environ.get("PERDURE_HOME") or ".perdure")
    return _shop(Path(os.environ.get("SUPPORT_DESK_DB") or home / "support_desk.db"))


@cache
def _shop(path: Path) -> Shop:
    return Shop(path)


def _create(path: Path) -> None:
    """Make the database aside and link it into place: others find all of it, or nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as aside:
        made = Path(aside) / "shop.db"
        with closing(sqlite3.connect(made)) as db:
            db.executescript(_SCHEMA)
            _fill(db)
            db.commit()
        with suppress(FileExistsError):  # another process was faster
            path.hardlink_to(made)


def _fill(db: sqlite3.Connection) -> None:
    db.executemany("INSERT INTO customers VALUES (?, ?, ?)", seed.CUSTOMERS)
    for order in seed.orders():
        db.execute("INSERT INTO orders VALUES (?, ?, ?, ?, ?)", order[:5])
        db.executemany(
            "INSERT INTO items VALUES (?, ?, ?, ?, ?)", [(order.id, *item) for item in order.items]
        )


def _order(db: sqlite3.Connection, order_id: str) -> Order:
    wanted = "SELECT orders.*, city FROM orders JOIN customers USING (email) WHERE id = ?"
    row = db.execute(wanted, [order_id.strip().upper()]).fetchone()
    if row is None:
        raise UnknownOrder(f"there is no order {order_id!r}")
    key = [row["id"]]
    items = db.execute("SELECT name, quantity, price_cents FROM items WHERE order_id = ?", key).fetchall()
    notes = db.execute("SELECT text FROM notes WHERE order_id = ? ORDER BY rowid", key).fetchall()
    paid_back = db.execute("SELECT SUM(amount_cents) FROM refunds WHERE order_id = ?", key).fetchone()
    return Order(
        **row,
        items=[Item(**item) for item in items],
        notes=[note["text"] for note in notes],
        total_cents=sum(item["quantity"] * item["price_cents"] for item in items),
        refunded_cents=paid_back[0] or 0,
    )


def _refund(row: sqlite3.Row) -> Refund:
    return Refund(order_id=row["order_id"], amount_cents=row["amount_cents"], reason=row["reason"])
