"""A customer-support agent over the shop in shop.py.

perdure dev examples/support_desk/agent.py
perdure run support "Where is order W2378156?"
"""

import asyncio
import os
from datetime import timedelta

from scripted import script
from shop import Customer, Order, Refund, open_shop

from perdure import Agent, Limits, ToolContext, tool
from perdure.testing import ScriptedModel

# Without a key the agent still runs whole, with a script in the place of the model.
MODEL = "anthropic:claude-sonnet-5-5" if os.environ.get("ANTHROPIC_API_KEY") else "scripted:support-desk"
models = {"scripted": ScriptedModel(script, delay=timedelta(milliseconds=60))}

# How long the slow ones, carriers and banks, take for each thing they do.
PACE = timedelta(seconds=float(os.environ.get("SUPPORT_DESK_PACE", "1")))


@tool
def find_customer(email: str) -> Customer | str:
    """Who has this e-mail address.

    Args:
        email: the customer's e-mail address
    """
    return open_shop().customer(email) or f"no customer has the address {email}"


@tool
def list_orders(email: str) -> list[Order]:
    """A customer's orders, the newest first.

    Args:
        email: the customer's e-mail address
    """
    return open_shop().orders_of(email)


@tool
def order_details(order_id: str) -> Order:
    """An order: items, total, status, notes, and what has been refunded. Amounts are in cents.

    Args:
        order_id: such as W2378156
    """
    return open_shop().order(order_id)


# Slow, so it says how far it is. A worker that is silent for two seconds is taken for dead, and the
# call is made again on another: a read may be repeated.
@tool(heartbeat=timedelta(seconds=2))
async def track_parcel(order_id: str, ctx: ToolContext) -> str:
    """Ask the carrier where a shipped order is now. Takes some seconds.

    Args:
        order_id: such as W2378156
    """
    shop = open_shop()
    order = await asyncio.to_thread(shop.order, order_id)
    if order.status != "shipped":
        return f"order {order.id} is {order.status}: no parcel is on its way"
    await asyncio.to_thread(shop.begin, "track_parcel", order.id, key=ctx.idempotency_key)
    stages = [f"calling {order.carrier}", "sender's depot", "sorting centre", f"depot in {order.city}"]
    for number, stage in enumerate(stages, 1):
        ctx.progress(f"{number} of {len(stages)}: {stage}")
        await asyncio.sleep(PACE.total_seconds())
    return f"{order.carrier} has parcel {order.id} at its depot in {order.city}; it is delivered tomorrow"


# A write. Its key is the same however often the call is tried, so the shop can tell.
@tool(effect="write")
def add_note(order_id: str, text: str, ctx: ToolContext) -> str:
    """Put a note on an order, for the warehouse and the courier.

    Args:
        order_id: such as W2378156
        text: the note
    """
    added = open_shop().add_note(order_id, text, key=ctx.idempotency_key)
    return "noted" if added else "noted already, by an earlier attempt"


# A write that a person decides about first.
@tool(effect="write", approval=True, resource="order_id", heartbeat=timedelta(seconds=2))
def refund_order(order_id: str, reason: str, ctx: ToolContext, amount_cents: int | None = None) -> Refund:
    """Pay money back for an order.

    Args:
        order_id: such as W2378156
        reason: why, in a few words
        amount_cents: how much; left out: all that has not been refunded yet
    """
    refund = open_shop().refund(order_id, amount_cents, reason, key=ctx.idempotency_key)
    booked = "were booked by an earlier attempt" if refund.already_made else "are booked"
    ctx.progress(f"{refund.amount_cents} cents {booked}; waiting for the bank to confirm")
    ctx.cancelled.wait(2 * PACE.total_seconds())
    return refund


support = Agent(
    name="support",
    model=MODEL,
    instructions="""You answer customers of a furniture shop, in a few friendly sentences.
Look facts up before you state them; never guess. Look an order up before you change anything about it.
Make notes and refunds one at a time, before slow things such as tracking. A refund needs no question
back to the customer: ask for it by the tool, and a colleague decides. Tell amounts in dollars.""",
    tools=[find_customer, list_orders, order_details, track_parcel, add_note, refund_order],
    limits=Limits(steps=12, cost_usd=1.0),
)
