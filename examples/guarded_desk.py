"""A desk with hooks: large refunds go to a person, card numbers stay out of results, and spam ends at once.

python examples/guarded_desk.py                  # a server, a worker and one run, in this process
"""

import asyncio
import re

import scripted

from perdure import Agent, Client, Hook, tool
from perdure.hooks import Ask, EndTurn, HookedCall, HookedRun, Replace, Verdict
from perdure.testing import ScriptedModel, running

models = {"scripted": ScriptedModel(scripted.support)}


@tool
def order_status(order_id: str) -> str:
    """Where an order is."""
    return "delivered on Monday, paid with 4111 1111 1111 1111"


@tool(effect="write")
def refund(order_id: str, cents: int) -> str:
    """Pay money back."""
    return f"{cents} cents are on their way back"


class Guard(Hook):
    async def on_start(self, run: HookedRun) -> Verdict | None:
        is_spam = run.message is not None and "lottery" in run.message.text
        return EndTurn(text="We do not answer this.") if is_spam else None

    async def before_tool(self, call: HookedCall) -> Verdict | None:
        is_large = call.tool == "refund" and call.arguments["cents"] > 1_000
        return Ask(reason="more than 10 dollars") if is_large else None

    async def after_tool(self, call: HookedCall) -> Verdict | None:
        text = call.result.text if call.result else ""
        masked = re.sub(r"(\d{4} ){3}", "**** ", text)
        return None if masked == text else Replace(value=masked)


desk = Agent(name="desk", model="scripted:support", tools=[order_status, refund], hooks=[Guard()])


async def main(client: Client) -> None:
    print((await client.run("desk", "Where is W1?")).output)
    print((await client.run("desk", "You won the lottery!")).output)


async def _local() -> None:
    async with running([desk], models=models) as client:
        await main(client)


if __name__ == "__main__":
    asyncio.run(_local())
