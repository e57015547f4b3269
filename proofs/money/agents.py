"""Agents of the trees, as a worker serves them: `python -m perdure.workers proofs.money.agents`."""

import base64
import json
import os
import struct
from datetime import timedelta
from pathlib import Path
from typing import Final

from perdure import Agent, Document, Edge, Graph, Image, Limits, Node, Swarm, ToolContext, tool
from perdure.model import ModelConfig

MODEL: Final = "anthropic:claude-sonnet-5-5"
MOST_TOKENS: Final = 600
_NOTES = Path(os.environ.get("MONEY_NOTES", os.devnull))


def _model(**settings: object) -> ModelConfig:
    return ModelConfig.model_validate(
        {
            "name": MODEL,
            "max_tokens": MOST_TOKENS,
            "timeout": timedelta(seconds=20),
            "options": {"base_url": os.environ.get("MONEY_PROVIDER", "http://127.0.0.1:9")},
            **settings,
        }
    )


@tool(effect="write")
def note(context: ToolContext, text: str) -> str:
    """Write something down."""
    line = {"tree": context.context["tree"], "key": context.idempotency_key}
    with _NOTES.open("a") as notes:
        notes.write(json.dumps(line) + "\n")
    return f"noted {len(text)} characters"


@tool
def fetch(kind: str, size: int) -> Document | Image | str:
    """Fetch a document, a picture or a text of that size."""
    match kind:
        case "pdf":
            return Document(name="contract", data=base64.b64encode(_pdf(size)).decode())
        case "csv":
            lines = "\n".join(f"{n},{n * 7919 % 100_003},W{n:05}" for n in range(size * 20))
            data = base64.b64encode(lines.encode()).decode()
            return Document(name="orders", media_type="text/plain", data=data)
        case "picture":
            return Image(data=base64.b64encode(_png(size * 100, 300)).decode())
        case _:
            return "\n".join(f"{n:08x} order {n} is on its way to the customer" for n in range(size * 15))


def _pdf(pages: int) -> bytes:
    kids = b"".join(b"%d 0 obj\n<< /Type /Page /Parent 2 0 R >>\nendobj\n" % (n + 3) for n in range(pages))
    filling = b"% " + b"x" * 9000 + b"\n"  # long enough for the blob store
    return (
        b"%PDF-1.4\n2 0 obj\n<< /Type /Pages /Count "
        + str(pages).encode()
        + b" >>\nendobj\n"
        + kids
        + filling
    )


def _png(width: int, height: int) -> bytes:
    return (
        b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
        + struct.pack(">II", width, height)
        + b"\x08\x02"
        + b"\x00" * 9000
    )


_BELOW = Limits(steps=6)
clerk = Agent(
    name="clerk",
    model=_model(thinking="adaptive"),
    description="Looks things up.",
    instructions="You are clerk.",
    tools=[note, fetch],
    limits=_BELOW,
)
boss = Agent(
    name="boss",
    model=_model(),
    instructions="You are boss.",
    tools=[note, fetch, clerk.as_tool()],
    limits=Limits(steps=8),
)
ann = Agent(name="ann", model=_model(), instructions="You are ann.", tools=[note, fetch], limits=_BELOW)
ben = Agent(name="ben", model=_model(), instructions="You are ben.", tools=[note], limits=_BELOW)
desk = Swarm(name="desk", agents=[ann, ben])
board = Graph(
    name="board",
    nodes={"first": Node(ann), "second": Node(clerk), "last": Node(ben)},
    edges=[Edge("first", "last"), Edge("second", "last")],
    entry=["first", "second"],
)
