"""What the model answers: a pure function of the seed, the tree, the agent and the length of the conversation."""

import json
import random
import re
from dataclasses import dataclass
from typing import Any

TREE = re.compile(r"\[tree-(\d+)\]")
_TEXT = (
    "the order was placed on monday and left our warehouse in the evening refund carrier border customs "
    "delay parcel invoice amount internationalization twenty seven W1042 2026 99.50 ok a I we it"
)
_WORDS = tuple(_TEXT.split())


@dataclass(frozen=True)
class Block:
    """Content block of an answer."""

    kind: str
    """"thinking", "text" or "tool_use"."""
    pieces: tuple[str, ...]
    name: str = ""
    hidden: int = 0
    """Tokens of thinking that are billed and not shown."""


def tree_of(body: dict[str, Any]) -> str:
    """Return the number of the tree that a request belongs to."""
    found = TREE.search(json.dumps(body["messages"]))
    if found is None:
        raise ValueError("no tree is named in the conversation")
    return found.group(1)


def agent_of(body: dict[str, Any]) -> str:
    """Return the agent that asks."""
    found = re.search(r"You are (\w+)", json.dumps(body.get("system") or ""))
    return found.group(1) if found else ""


def answer(body: dict[str, Any], seed: int) -> list[Block]:
    """Return the answer to a request."""
    tree, agent = tree_of(body), agent_of(body)
    steps = sum(message["role"] == "assistant" for message in body["messages"])
    chance = random.Random(f"{seed} {tree} {agent} {steps} {len(body['messages'])}")
    blocks: list[Block] = []
    if body.get("thinking", {}).get("type") == "adaptive":
        # A summary is shown; the thought itself is longer.
        blocks.append(Block("thinking", _words(chance, 5, 30), hidden=chance.randint(20, 60)))
    tools: list[dict[str, Any]] = body.get("tools") or []
    offered: set[str] = {tool["name"] for tool in tools}
    may_call = bool(offered) and body.get("tool_choice", {}).get("type") != "none"
    if may_call and steps < chance.choice((1, 2, 2, 3)):
        if chance.random() < 0.5:
            blocks.append(Block("text", _words(chance, 3, 40)))
        return blocks + _calls(chance, offered, tree, steps)
    return [*blocks, Block("text", (f"[tree-{tree}] ", *_words(chance, 10, 250)))]


def _calls(chance: random.Random, offered: set[str], tree: str, steps: int) -> list[Block]:
    if "handoff_to_agent" in offered and steps and chance.random() < 0.6:
        other = {"agent_name": chance.choice(("ann", "ben")), "message": f"Go on with [tree-{tree}]."}
        return [_call("handoff_to_agent", other)]
    names = sorted(offered & {"note", "fetch", "clerk"})
    return [
        _call(name, _arguments(chance, name, tree))
        for name in chance.choices(names, k=chance.choice((1, 1, 2, 3)))
    ]


def _arguments(chance: random.Random, name: str, tree: str) -> dict[str, Any]:
    match name:
        case "note":
            return {"text": "".join(_words(chance, 10, 150))}
        case "fetch":
            kind = chance.choice(("pdf", "csv", "picture", "text"))
            return {"kind": kind, "size": chance.randint(1, 6)}
        case _:
            return {"input": f"[tree-{tree}] " + "".join(_words(chance, 5, 40))}


def _call(name: str, arguments: dict[str, Any]) -> Block:
    text = json.dumps(arguments)
    return Block("tool_use", tuple(text[at : at + 9] for at in range(0, len(text), 9)), name=name)


def _words(chance: random.Random, low: int, high: int) -> tuple[str, ...]:
    return tuple(f"{word} " for word in chance.choices(_WORDS, k=chance.randint(low, high)))
