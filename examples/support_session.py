"""A support session: a conversation of several turns, with a refund that waits for a person.

python examples/support_session.py               # a server, a worker and one session, in this process
perdure chat support                             # beside: perdure dev examples/support_session.py
"""

import asyncio
import os

import scripted

from perdure import Agent, Client, Limits, tool
from perdure.testing import ScriptedModel, running

MODEL = "anthropic:claude-sonnet-5-5" if os.environ.get("ANTHROPIC_API_KEY") else "scripted:support"
models = {"scripted": ScriptedModel(scripted.support)}


@tool
def order_status(order_id: str) -> str:
    """Where an order is."""
    return "delivered on Monday, 49.00 dollars"


@tool(effect="write", approval=True)
def refund(order_id: str, cents: int) -> str:
    """Pay money back. A person decides about each refund."""
    return f"{cents} cents are on their way back"


support = Agent(
    name="support",
    model=MODEL,
    instructions="Help customers with their orders.",
    tools=[order_status, refund],
    limits=Limits(steps=10, cost_usd=0.10),  # of each turn
)


async def talk(client: Client) -> None:
    session = await client.session("ticket-79", agent="support", session_limits=Limits(cost_usd=1.00))
    print((await session.say("Where is W1?")).output)
    async for event in session.stream("It is broken. I want my money back."):
        if event.kind == "approval_requested":
            await session.resolve_approval(event.approval.call_id, allow=True, by="lee")
        if event.kind == "turn_finished":
            print(event.reply.output)
    print((await session.status()).cost_microusd, "millionths of a dollar")


async def main() -> None:
    async with running([support], models=models) as client:
        await talk(client)


if __name__ == "__main__":
    asyncio.run(main())
