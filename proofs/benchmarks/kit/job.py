"""The workload: what the fake model asks for, and what the fake tool answers.

A job of S steps is S times a model call that asks for `calls` tool calls, and one closing model call
that answers. A fake model knows its job from the prompt (the run's first user message) and the step
from the newest result that it is shown, so it keeps no state and works in any process.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

TOOL = "lookup"
"""Name of the one tool. Its arguments are `step`, `call` and `size`, all integers."""


@dataclass(frozen=True)
class Job:
    """One run of the workload."""

    id: str
    steps: int = 10
    size: int = 2048
    """Bytes of each tool result."""
    calls: int = 1
    """Tool calls a step."""
    tokens: int = 0
    """Streaming: words of the closing answer, each the time it was made (`time.time()`), in seconds."""
    rate: float = 0.0
    """Streaming: words a second; 0: all at once."""
    approval: bool = False
    """Hold the first tool call until a person allows it."""
    hold_at: int = 0
    """Hold the tool call of that step until a person allows it; 0: none."""
    children: bool = False
    """The calls of a step are not tool calls but agents, each of which answers at once."""

    @property
    def prompt(self) -> str:
        """The first user message."""
        usual = asdict(Job(id=self.id))
        return json.dumps({key: value for key, value in asdict(self).items() if value != usual[key]})

    @classmethod
    def of(cls, prompt: str) -> "Job":
        """The job behind a prompt."""
        return cls(id="", **json.loads(prompt))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        """The job as the harness sent it."""
        return cls(**value)


@dataclass(frozen=True)
class Say:
    """What the model answers: the arguments of the tool calls it wants, or text."""

    calls: tuple[dict[str, int], ...] = ()
    text: str = ""


def step_of(shown: str | None) -> int:
    """The step that a tool result, as it was shown to the model, belongs to; 0 for none."""
    return 0 if shown is None else int(shown.partition("step ")[2].split(" ", 1)[0])


def ask(job: Job, done: int) -> Say:
    """The fake model: what it says when so many steps are done."""
    step = done + 1
    if step > job.steps:
        return Say(text=f"done after {done} steps")
    return Say(calls=tuple({"step": step, "call": n, "size": job.size} for n in range(1, job.calls + 1)))


def result(step: int, call: int, size: int) -> str:
    """The fake tool: exactly `size` ASCII characters that no compression makes small, and no JSON escapes."""
    head = f"step {step} call {call}: "
    digest, body = hashlib.sha256(head.encode()), ""
    while len(body) < size:
        digest.update(b"+")
        body += digest.hexdigest()
    return (head + body)[:size]
