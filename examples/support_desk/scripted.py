"""What stands in for the model when there is no key: a script that reads the customer's words.

It is a function of the conversation so far and keeps nothing between calls, as a model does. It knows
a handful of words and no language; everything factual in its answers comes from the tools' results.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from perdure.messages import Message, ToolResult
from perdure.model import ModelRequest
from perdure.testing import Line, calls, says

LABEL = "(scripted model)"

_ORDER_ID = re.compile(r"\bW\d{7}\b", re.IGNORECASE)
_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*\w")
_DOLLARS = re.compile(r"\$\s*(\d+(?:\.\d\d)?)|(\d+(?:\.\d\d)?)\s*(?:dollars|usd)\b", re.IGNORECASE)
_NOTE = re.compile(
    r"\bnote\b(?: on (?:it|W\d{7}))?(?: that|:)?\s*(?P<text>.+?)(?=[.;!?]|, and |$)", re.IGNORECASE
)
_REFUND = re.compile(r"\brefund|money back|pay (?:me )?back|reimburse", re.IGNORECASE)
_TRACK = re.compile(r"\bwhere\b|\btrack|\bparcel|\barrive|\bnot come\b|\bdelivery\b", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Wish:
    """What the customer said, as far as a few regular expressions understand it."""

    words: str
    order_ids: list[str]
    email: str | None

    @property
    def note(self) -> str | None:
        found = _NOTE.search(self.words)
        return found["text"].strip() if found else None

    @property
    def refund(self) -> bool:
        return bool(_REFUND.search(self.words))

    @property
    def reason(self) -> str:
        """The first sentence that tells, not asks; all of it where there is none."""
        sentences = re.split(r"(?<=[.!?])\s+", self.words)
        return next((told for told in sentences if not _REFUND.search(told)), self.words)[:200]

    @property
    def track(self) -> bool:
        return bool(_TRACK.search(self.words))

    @property
    def amount_cents(self) -> int | None:
        found = _DOLLARS.search(self.words)
        return round(float(found[1] or found[2]) * 100) if found else None


@dataclass(frozen=True, kw_only=True)
class Known:
    """What the tools have said since the customer spoke."""

    results: dict[str, list[ToolResult]] = field(default_factory=dict[str, list[ToolResult]])

    def asked(self, tool: str) -> bool:
        return tool in self.results

    def good(self, tool: str) -> list[str]:
        return [result.text for result in self.results.get(tool, []) if not result.is_error]

    def bad(self, tool: str) -> list[str]:
        return [result.text for result in self.results.get(tool, []) if result.is_error]

    @property
    def orders(self) -> list[dict[str, Any]]:
        """The orders that were looked up one by one."""
        return [_facts(text) for text in self.good("order_details")]

    @property
    def listed(self) -> list[dict[str, Any]]:
        """The orders of the customer's list."""
        return [order for text in self.good("list_orders") for order in _facts(text)]


def script(request: ModelRequest) -> Line:
    """The next thing to say or do."""
    wish, known = understand(request.messages), gathered(request.messages)
    if request.tool_choice == "auto":
        step = next_calls(wish, known)
        if step:
            return sum(step[1:], start=step[0])
    return _says(answer(wish, known))


def _says(words: str) -> Line:
    return says(f"{LABEL} {words}")


def understand(messages: Sequence[Message]) -> Wish:
    """The newest words; order ids and the e-mail address from earlier ones where these name none."""
    said = [message.text for message in messages if message.role == "user"]
    naming_orders = next((text for text in reversed(said) if _ORDER_ID.search(text)), "")
    naming_email = next((text for text in reversed(said) if _EMAIL.search(text)), "")
    email = _EMAIL.search(naming_email)
    return Wish(
        words=said[-1],
        order_ids=list(dict.fromkeys(found.upper() for found in _ORDER_ID.findall(naming_orders))),
        email=email[0] if email else None,
    )


def gathered(messages: Sequence[Message]) -> Known:
    """The tool results after the customer's newest words."""
    results: dict[str, list[ToolResult]] = {}
    for message in messages:
        if message.role == "user":
            results = {}
        for result in message.tool_results:
            results.setdefault(result.name, []).append(result)
    return Known(results=results)


def next_calls(wish: Wish, known: Known) -> list[Line]:
    """The calls of the next step; none when it is time to answer."""
    if not wish.order_ids and wish.email and not known.asked("find_customer"):
        return [_says("Let me see who you are.") + calls("find_customer", email=wish.email)]
    if not wish.order_ids and wish.email and not known.asked("list_orders"):
        return [calls("list_orders", email=wish.email)]
    order_ids = wish.order_ids or [order["id"] for order in known.listed if wish.track and _moves(order)]
    if order_ids and not known.asked("order_details"):
        return [calls("order_details", order_id=order_id) for order_id in order_ids]
    return _about_orders(wish, known)


def _about_orders(wish: Wish, known: Known) -> list[Line]:
    order_ids = [order["id"] for order in known.orders]
    if wish.note and not known.asked("add_note"):
        return [calls("add_note", order_id=order_id, text=wish.note) for order_id in order_ids]
    shipped = [order["id"] for order in known.orders if _moves(order)]
    if wish.track and not wish.refund and shipped and not known.asked("track_parcel"):
        return [_says("I am asking the carrier.")] + [calls("track_parcel", order_id=id_) for id_ in shipped]
    if wish.refund and not known.asked("refund_order"):
        return [_refund(order_id, wish) for order_id in order_ids]
    return []


def _refund(order_id: str, wish: Wish) -> Line:
    amount = {} if wish.amount_cents is None else {"amount_cents": wish.amount_cents}
    return calls("refund_order", order_id=order_id, reason=wish.reason, **amount)


def _moves(order: dict[str, Any]) -> bool:
    return str(order["status"]) == "shipped"


def answer(wish: Wish, known: Known) -> str:
    """The reply, put together from what the tools said."""
    if not wish.order_ids and not wish.email:
        return (
            "I can look up an order, track a parcel, leave a note or ask for a refund. "
            "Please tell me an order number, such as W2378156, or your e-mail address."
        )
    parts = [
        *_about_customer(wish, known),
        *(f"I am sorry, {_why(text)}. Please check the number." for text in known.bad("order_details")),
        *(_told(order) for order in known.orders),
        *(f"On your order it says now: {wish.note}." for _ in known.good("add_note")),
        *(f"{text}." for text in known.good("track_parcel")),
        *(_paid(_facts(text)) for text in known.good("refund_order")),
        *(f"No refund was made: {_why(text)}." for text in known.bad("refund_order")),
        *(
            f"That did not work: {_why(text)}."
            for tool in ("add_note", "track_parcel")
            for text in known.bad(tool)
        ),
    ]
    return " ".join(parts)


def _about_customer(wish: Wish, known: Known) -> list[str]:
    if wish.order_ids or not known.asked("list_orders"):
        return []
    if not known.listed:
        return [f"I am sorry, I find no orders under {wish.email}. Please check the address."]
    listed = ", ".join(f"{order['id']} ({order['status']})" for order in known.listed)
    more = " Which one shall be refunded?" if wish.refund else ""
    return [f"Under {wish.email} I find {listed}.{more}"]


def _told(order: dict[str, Any]) -> str:
    items = ", ".join(f"{item['quantity']} x {item['name']}" for item in order["items"])
    back = f", of which {_dollars(order['refunded_cents'])} were refunded" if order["refunded_cents"] else ""
    return f"Order {order['id']} ({items}; {_dollars(order['total_cents'])}{back}) is {order['status']}."


def _paid(refund: dict[str, Any]) -> str:
    return f"{_dollars(refund['amount_cents'])} are on their way back to you for {refund['order_id']}."


def _dollars(cents: int) -> str:
    return f"${cents / 100:.2f}"


def _facts(result: str) -> Any:
    """A tool's JSON; before it may stand a line that says that a person changed the arguments."""
    return json.loads(result.splitlines()[-1])


def _why(error: str) -> str:
    """A tool's error without the name of its class."""
    return error.split(": ", 1)[-1].rstrip(".")
