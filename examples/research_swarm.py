"""A research swarm: a finder, a sceptic and a writer hand one question to each other until it is answered.

python examples/research_swarm.py                # a server, a worker and one run, in this process
perdure dev examples/research_swarm.py           # or served, for: perdure run research "..."
"""

import asyncio
import os
from datetime import timedelta

import scripted

from perdure import Agent, Swarm, SwarmLimits, tool
from perdure.testing import ScriptedModel, running

MODEL = "anthropic:claude-sonnet-5-5" if os.environ.get("ANTHROPIC_API_KEY") else "scripted:research"
models = {"scripted": ScriptedModel(scripted.research)}

LIBRARY = {
    "tides": "The Moon causes most of the tide, the Sun about 46 % as much.",
    "springs": "Full and new moon.",
}


@tool
def search(topic: str) -> str:
    """What the library has on a topic: tides or springs."""
    return LIBRARY.get(topic, "nothing")


def member(name: str, description: str, instructions: str) -> Agent:
    return Agent(name=name, model=MODEL, description=description, instructions=instructions, tools=[search])


research = Swarm(
    name="research",
    agents=[
        member("finder", "Finds facts.", "Find facts in the library, then hand over to the sceptic."),
        member("sceptic", "Sees what is missing.", "Ask the finder for more, or let it be written."),
        member("writer", "Writes the answer.", "Answer in one sentence, from the shared knowledge."),
    ],
    limits=SwarmLimits(max_handoffs=6, cost_usd=0.50, timeout=timedelta(minutes=5)),
)


async def main() -> None:
    async with running([research], models=models) as client:
        result = await client.run("research", "What makes the tides, and when are they highest?")
        print(" -> ".join(node.node for node in result.nodes))
        print(result.shared_context)
        print(result.output)


if __name__ == "__main__":
    asyncio.run(main())
