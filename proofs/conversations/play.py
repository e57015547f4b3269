"""Play: the sessions against a real server, a worker, and the scripted models, under each way to keep a window."""

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Final

from perdure import Agent, Limits, SlidingWindow, Summary, tool
from perdure.context import ContextStrategy
from perdure.messages import Usage
from perdure.prices import shipped_prices
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from perdure.testing import ScriptedModel, running

from .script import Clerk
from .sessions import LongSession, key_line, key_of

WINDOW_TOKENS: Final = 8_000
PRICED_AS: Final = "anthropic:claude-sonnet-5-5"
WAYS: Final[dict[str, ContextStrategy]] = {
    "window": SlidingWindow(tokens=WINDOW_TOKENS),
    "window_read_back": SlidingWindow(tokens=WINDOW_TOKENS, read_back=True),
    "summary": Summary(tokens=WINDOW_TOKENS, read_back=False),
    "summary_read_back": Summary(tokens=WINDOW_TOKENS),
}
"""Ways to keep a long session within a window, by name."""
_AT_ONCE: Final = 4


@dataclass(frozen=True, kw_only=True)
class Score:
    """What came of the sessions under one way."""

    way: str
    sessions: int
    tasks: int
    settled_right: int
    """Tasks that were settled with the right key, of those that need one."""
    need_key: int
    turns: int
    blind_steps: int
    """Steps at which the request in hand was not in what the model saw."""
    missing_calls: int
    """Gold calls that were not carried out, or not once."""
    model_calls: int
    tool_calls: int
    input_tokens: int
    output_tokens: int
    cost_usd: float
    seconds: float


def desk_tools(
    sessions: Sequence[LongSession], made: list[str], settled: dict[tuple[int, int], str]
) -> list[Any]:
    """Return the clerk's tools: one for all calls of the set, and one that settles a task."""
    by_number = {session.number: session for session in sessions}

    @tool
    async def call_api(of: str, name: str, arguments: dict[str, Any]) -> str:
        """Call a function of the APIs, on behalf of a message."""
        tag, group, position = of.rsplit(".", 2)
        part = by_number[int(tag[1:].partition(".")[0])].part(tag)
        call = [group for group in part.groups if group][int(group)][int(position)]
        made.append(of)
        first = part.number == 1 and (group, position) == ("0", "0")
        return f"{call.result}\n{key_line(part.session, part.task)}" if first else call.result

    @tool
    async def settle(session: int, case: int, key: str) -> str:
        """Settle a case with the key of an earlier one."""
        settled[session, case] = key
        return "settled"

    return [call_api, settle]


async def play(way: str, sessions: Sequence[LongSession], settings: Settings | None = None) -> Score:
    """Play the sessions under that way; without settings, on a server of their own."""
    clerk, made, settled = Clerk(sessions), list[str](), dict[tuple[int, int], str]()
    agent = Agent(
        name="clerk",
        model="scripted:clerk",
        instructions="Do what the messages ask for, with the tools.",
        tools=desk_tools(sessions, made, settled),
        context=WAYS[way],
        limits=Limits(steps=None),
    )
    began = time.monotonic()
    models = {"scripted": ScriptedModel(clerk)}
    address = None if settings is None else settings.address
    async with running([agent], models=models, settings=settings, address=address, parked="wait") as client:
        door = asyncio.Semaphore(_AT_ONCE)
        used = await asyncio.gather(
            *(_talk(client, f"{way}-{session.number}", session, door) for session in sessions)
        )
    usage = sum((each for each, _, _ in used), start=Usage())
    price = shipped_prices().find(PRICED_AS, date(2026, 11, 30))
    assert price is not None, f"no price for {PRICED_AS}"
    needed = [part for session in sessions for part in session.parts if part.needs]
    gold = sum(len(group) for session in sessions for part in session.parts for group in part.groups)
    return Score(
        way=way,
        sessions=len(sessions),
        tasks=sum(len({part.task for part in session.parts}) for session in sessions),
        settled_right=sum(
            settled.get((part.session, part.task)) == key_of(part.session, part.needs) for part in needed
        ),
        need_key=len(needed),
        turns=sum(len(session.parts) for session in sessions),
        blind_steps=clerk.blind,
        missing_calls=gold - len(set(made)) + len(made) - len(set(made)),
        model_calls=sum(steps for _, steps, _ in used),
        tool_calls=sum(tools for _, _, tools in used),
        input_tokens=usage.all_input_tokens,
        output_tokens=usage.output_tokens,
        cost_usd=round(price.cost_microusd(usage) / 1e6, 2),
        seconds=round(time.monotonic() - began),
    )


async def _talk(
    client: Client, name: str, session: LongSession, door: asyncio.Semaphore
) -> tuple[Usage, int, int]:
    """Say all messages of the session; return what it has used, its steps and its tool calls."""
    async with door:
        talk = await client.session(name, agent="clerk", stream=False)
        for part in session.parts:
            await talk.say(part.text)
        status = await talk.status()
        await talk.close()
        return status.usage, status.step, status.tool_calls


def keep(file: Path, score: Score, head: dict[str, Any]) -> None:
    """Store the score in place of an older one of the same way."""
    stored: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {"scores": {}}
    stored["head"] = head
    stored["scores"][score.way] = asdict(score)
    stored["scores"] = {way: stored["scores"][way] for way in WAYS if way in stored["scores"]}
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(stored, indent=1) + "\n")
