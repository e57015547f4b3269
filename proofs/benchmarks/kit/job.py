"""Workload: the tool calls that the fake model asks for, and the results of the fake tool.

A job of S steps has S model calls that each ask for `calls` tool calls, and a closing model call that
answers. A fake model reads its job from the prompt (the run's first user message) and the step from the
newest tool result, so it keeps no state and works in any process.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from typing import Any

TOOL = "lookup"
"""Name of the tool. Its arguments are `step`, `call` and `size`, all integers."""


@dataclass(frozen=True)
class Job:
    """Run of the workload."""

    id: str
    steps: int = 10
    size: int = 2048
    """Bytes of each tool result."""
    calls: int = 1
    """Tool calls a step."""
    tokens: int = 0
    """Streaming: words of the closing answer; each word is its own `time.time()`, in seconds."""
    rate: float = 0.0
    """Streaming: words a second; 0: all at once."""
    approval: bool = False
    """True when the first tool call needs an approval."""
    hold_at: int = 0
    """Step whose tool call needs an approval; 0: none."""
    children: bool = False
    """True when the calls of a step are agents that answer at once, instead of tool calls."""

    @property
    def prompt(self) -> str:
        """First user message of the run."""
        usual = asdict(Job(id=self.id))
        return json.dumps({key: value for key, value in asdict(self).items() if value != usual[key]})

    @classmethod
    def of(cls, prompt: str) -> "Job":
        """Parse the job from a prompt."""
        return cls(id="", **json.loads(prompt))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Job":
        """Build the job that the harness sent."""
        return cls(**value)


@dataclass(frozen=True)
class Answer:
    """Answer of the fake model: the arguments of tool calls, or text."""

    calls: tuple[dict[str, int], ...] = ()
    text: str = ""


def step_of(result_text: str | None) -> int:
    """Return the step of a tool result as the model gets it; 0 for None."""
    return 0 if result_text is None else int(result_text.partition("step ")[2].split(" ", 1)[0])


def ask(job: Job, done: int) -> Answer:
    """Return the fake model's answer after `done` steps."""
    step = done + 1
    if step > job.steps:
        return Answer(text=f"done after {done} steps")
    return Answer(calls=tuple({"step": step, "call": n, "size": job.size} for n in range(1, job.calls + 1)))


def result(step: int, call: int, size: int) -> str:
    """Return the fake tool's result: `size` ASCII characters, hard to compress, without JSON escapes."""
    head = f"step {step} call {call}: "
    digest, body = hashlib.sha256(head.encode()), ""
    while len(body) < size:
        digest.update(b"+")
        body += digest.hexdigest()
    return (head + body)[:size]
