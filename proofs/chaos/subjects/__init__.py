"""What is put through the chaos: Perdure, and peers where they can run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..catalogue import Task

QUEUE = "chaos"
MODEL_TIMEOUT_SECONDS = 10
"""Of one model call. The provider answers in milliseconds; a stalled one is given up after this."""
TOOL_TIMEOUT_SECONDS = 5
"""Of one attempt of a tool's call."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where the parts of a run are, as a worker reaches them."""

    temporal: str
    """`host:port`, through the proxy."""
    provider: str
    """Base URL of the chat completions API, through the proxy."""
    tools: str
    """Base URL of the tools."""
    catalogue: Path
    folder: Path
    """Of this run, and shared by its workers."""


@dataclass(frozen=True, kw_only=True)
class Played:
    """What became of a task, as its caller saw it."""

    task: str
    error: str = ""
    """Why it was not played to its end; empty when each turn ended with the words it should."""


class Subject(Protocol):
    """One system under test."""

    @property
    def name(self) -> str:
        """What it is called in results."""
        ...

    def python(self) -> Path:
        """The interpreter of its environment, which is made if need be."""
        ...

    def command(self) -> Sequence[str]:
        """A worker's command line, without the interpreter."""
        ...

    def environment(self, where: Where, worker: str) -> Mapping[str, str]:
        """What the worker of that name finds in its environment."""
        ...

    async def connect(self, address: str, where: Where) -> Any:
        """A client; `address` is the server itself, without a proxy."""
        ...

    async def play(self, client: Any, task: Task) -> Played:
        """Play a task to its end, however long that takes and whatever is killed meanwhile."""
        ...

    async def mend(self, client: Any) -> int:
        """What a person on duty would do: resume what waits for one. How many there were."""
        ...


def base_environment(where: Where, worker: str) -> dict[str, str]:
    """What workers of all subjects find. The key tells the provider which worker asks."""
    return {
        "CHAOS_CATALOGUE": str(where.catalogue),
        "CHAOS_TEMPORAL": where.temporal,
        "CHAOS_TOOLS": where.tools,
        "CHAOS_WORKER": worker,
        "OPENAI_API_KEY": worker,
        "OPENAI_BASE_URL": where.provider,
    }


def subject(name: str) -> Subject:
    """The subject of that name."""
    from .peers import PydanticAI, Strands
    from .perdure.subject import Perdure

    known: dict[str, type[Perdure | Strands | PydanticAI]] = {
        one.name: one for one in (Perdure, Strands, PydanticAI)
    }
    return known[name]()


NAMES = ("perdure", "strands", "pydantic_ai")
