"""A debate: agents answer, read each other's answers and answer again; after a few rounds a judge decides.

A pattern of your own in one file: its vocabulary (`Debate`) and its scheduler (`DebateScheduler`).

python examples/debate.py                               # a server, a worker and one run, in this process
perdure graph tides --file examples/debate.py           # what it looks like
"""

import asyncio
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import scripted

from perdure import Agent, NodeResult, PatternLimits
from perdure.graph import as_text
from perdure.members import Member
from perdure.messages import Part, Text
from perdure.pattern import Over, Pattern, PatternSpec, Scheduler, Start, by_name
from perdure.testing import ScriptedModel, running

MODEL = "anthropic:claude-sonnet-5-5" if os.environ.get("ANTHROPIC_API_KEY") else "scripted:debate"
models = {"scripted": ScriptedModel(scripted.debate)}


@dataclass(frozen=True, kw_only=True)
class DebateProgress:
    """Everything that a debate remembers. A run carries it as JSON when it continues as new."""

    task: str | list[Part]
    round: int = 1
    pending: tuple[str, ...]
    """Speakers of this round that have not started."""
    answers: dict[str, str]
    """Answers of the last complete round, by speaker."""
    replies: dict[str, str]
    """Answers of this round so far."""
    end: Over | None = None


class DebateScheduler(Scheduler[DebateProgress]):
    """Choice of who speaks. Pure: a workflow runs it, and replays it."""

    progress_type = DebateProgress

    def __init__(self, spec: PatternSpec) -> None:
        self.judge = str(spec.settings["judge"])
        self.rounds = int(str(spec.settings["rounds"]))
        self.speakers = tuple(name for name in spec.members if name != self.judge)

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> DebateProgress:
        return DebateProgress(task=task, pending=self.speakers, answers={}, replies={})

    def startable(self, progress: DebateProgress) -> list[Start]:
        if progress.end is not None:
            return []
        visit = 1 if self.judge in progress.pending else progress.round
        return [
            Start(key=f"{name}-{visit}", node=name, prompt=self.prompt(progress, name), visit=visit)
            for name in progress.pending
        ]

    def record_start(self, progress: DebateProgress, starts: Sequence[Start]) -> DebateProgress:
        started = {start.node for start in starts}
        return replace(progress, pending=tuple(name for name in progress.pending if name not in started))

    def record_end(self, progress: DebateProgress, result: NodeResult) -> DebateProgress:
        if result.state != "done":
            reason = "error" if result.error else result.stop_reason or "cancelled"
            best = self.partial(progress)
            over = Over(stop_reason=reason, output=best, failure=result.error, cancel_running=True)
            return replace(progress, end=progress.end or over)
        if result.node == self.judge:
            # A limit may leave the judge without a word; then the answers are the best that there is.
            output = result.output or self.partial(progress)
            return replace(progress, end=Over(stop_reason=result.stop_reason or "end_turn", output=output))
        reply = as_text(result.output) or progress.answers.get(result.node, "")
        progress = replace(progress, replies={**progress.replies, result.node: reply})
        return self.next_round(progress) if len(progress.replies) == len(self.speakers) else progress

    def next_round(self, progress: DebateProgress) -> DebateProgress:
        # In the order of the speakers, whoever was the quickest.
        answers = {name: progress.replies[name] for name in self.speakers}
        # It is over after the last round, or when nobody changed their mind.
        over = progress.round == self.rounds or answers == progress.answers
        pending = (self.judge,) if over else self.speakers
        return replace(progress, round=progress.round + 1, pending=pending, answers=answers, replies={})

    def over(self, progress: DebateProgress) -> Over | None:
        return progress.end

    def partial(self, progress: DebateProgress) -> dict[str, str]:
        """Return the newest answer of each speaker: a debate that is stopped has no verdict."""
        return {**progress.answers, **progress.replies}

    def prompt(self, progress: DebateProgress, name: str) -> str | list[Part]:
        if not progress.answers:
            return progress.task
        said = [f"{'You' if s == name else s}: {answer}" for s, answer in progress.answers.items()]
        judges = name == self.judge
        request = "Decide, and give the one answer." if judges else "Answer anew, or hold your ground."
        text = "\n\n".join(["Answers so far:", *said, request])
        if isinstance(progress.task, str):
            return f"{progress.task}\n\n{text}"
        return [*progress.task, Text(text=text)]


@dataclass(frozen=True, kw_only=True)
class Debate(Pattern):
    """A debate of speakers before a judge, in a bounded number of rounds."""

    pattern: ClassVar = "debate"
    scheduler: ClassVar = DebateScheduler

    speakers: Sequence[Member]
    judge: Member
    rounds: int = 2

    @property
    def members(self) -> dict[str, Member]:
        return by_name([*self.speakers, self.judge])

    @property
    def settings(self) -> dict[str, str | int]:
        return {"judge": self.judge.name, "rounds": self.rounds}

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise self.wrong(f"rounds must be 1 or more, not {self.rounds!r}")
        super().__post_init__()


NAMES = ("galileo", "kepler", "newton")
tides = Debate(
    name="tides",
    speakers=[Agent(name=name, model=MODEL, instructions=f"You are {name}. Be brief.") for name in NAMES],
    judge=Agent(name="judge", model=MODEL, instructions="You judge a debate."),
    limits=PatternLimits(cost_usd=0.50),
)


async def main() -> None:
    async with running([tides], models=models) as client:
        print((await client.run("tides", "What makes the tides?")).output)


if __name__ == "__main__":
    asyncio.run(main())
