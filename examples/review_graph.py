"""A review graph: a draft goes to three reviewers; two of the three decide, and it may go round again.

python examples/review_graph.py                          # a server, a worker and one run, in this process
perdure graph review --file examples/review_graph.py     # what it looks like
"""

import asyncio
import os

import scripted
from pydantic import BaseModel

from perdure import Agent, Edge, Graph, GraphLimits, GraphState, Node, NodeInput
from perdure.testing import ScriptedModel, running

MODEL = "anthropic:claude-sonnet-5-5" if os.environ.get("ANTHROPIC_API_KEY") else "scripted:review"
models = {"scripted": ScriptedModel(scripted.review)}
NAMES = ("facts", "style", "law")


class Verdict(BaseModel):
    verdict: str
    why: str


def good_enough(state: GraphState) -> bool:
    """Runs in the workflow, under its sandbox: no clock, no chance, no network."""
    given = [state.output(name) for name in NAMES]
    return sum(vote["verdict"] == "publish" for vote in given if vote) >= 2


async def publish(done: NodeInput) -> str:
    return f"published: {done.prompt}"  # a plain function is a node too: an activity


author = Agent(name="author", model=MODEL, instructions="Write, or improve what you wrote by what was said.")
reviewers = {n: Agent(name=n, model=MODEL, instructions=f"Review {n}.", output_type=Verdict) for n in NAMES}
votes = Node(lambda there: there.inputs, join=2)
final = Node(publish, input=lambda state: state.text("author"))
review = Graph(
    name="review",
    nodes={"author": author, **reviewers, "votes": votes, "publish": final},
    edges=[
        *(edge for name in NAMES for edge in (("author", name), (name, "votes"))),
        Edge("votes", "publish", when=good_enough),
        Edge("votes", "author", when=lambda state: not good_enough(state)),
    ],
    entry="author",
    limits=GraphLimits(max_node_executions=20, cost_usd=1.0),
)


async def main() -> None:
    async with running([review], models=models) as client:
        print((await client.run("review", "a note on tides")).output)


if __name__ == "__main__":
    asyncio.run(main())
