"""Subjects of the proof by chaos: Perdure, and the peers that can run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..catalogue import Task
from ..schedule import Kind

QUEUE = "chaos"
MODEL_TIMEOUT_SECONDS = 10
"""Timeout of a model call. The provider answers in milliseconds; a stalled call ends after this."""
TOOL_TIMEOUT_SECONDS = 5
"""Timeout of an attempt of a tool's call."""
ABOUT_TOOLS: tuple[Kind, ...] = ("tools", "duplicates", "together")
"""Kinds in which the tools themselves are away for longer than the product's default attempts, or late."""
ABOUT_MODELS: tuple[Kind, ...] = ("provider", "provider_line", "together")
"""Kinds in which model calls stall: with the default of ten minutes a run would only last longer."""


@dataclass(frozen=True, kw_only=True)
class Where:
    """Addresses of the parts of a run, as a worker reaches them, and the kind of its faults."""

    kind: Kind

    temporal: str
    """`host:port`, through the proxy."""
    provider: str
    """Base URL of the chat completions API, through the proxy."""
    tools: str
    """Base URL of the tools."""
    catalogue: Path
    folder: Path
    """Folder of this run, shared by its workers."""


@dataclass(frozen=True, kw_only=True)
class TaskOutcome:
    """Outcome of a task, as its caller saw it."""

    task: str
    error: str = ""
    """Reason why the task did not end well; empty when each turn ended with the right words."""


class Subject(Protocol):
    """System under test."""

    @property
    def name(self) -> str:
        """Name of the subject in results."""
        ...

    def python(self) -> Path:
        """Return the interpreter of its environment; create the environment if need be."""
        ...

    def command(self) -> Sequence[str]:
        """Return a worker's command line, without the interpreter."""
        ...

    def environment(self, where: Where, worker: str) -> Mapping[str, str]:
        """Return the environment variables of the worker of that name."""
        ...

    async def connect(self, address: str, where: Where) -> Any:
        """Connect a client; `address` is the server itself, without a proxy."""
        ...

    async def play(self, client: Any, task: Task) -> TaskOutcome:
        """Play a task to its end, however long that takes and whatever is killed meanwhile."""
        ...

    async def resume_parked(self, client: Any) -> int:
        """Resume the runs that wait for a person, as one on duty would; return their number."""
        ...


def base_environment(where: Where, worker: str) -> dict[str, str]:
    """Return the variables for workers of all subjects; the API key tells the provider which worker asks."""
    return {
        "CHAOS_CATALOGUE": str(where.catalogue),
        "CHAOS_TEMPORAL": where.temporal,
        "CHAOS_TOOLS": where.tools,
        "CHAOS_WORKER": worker,
        "OPENAI_API_KEY": worker,
        "OPENAI_BASE_URL": where.provider,
    }


def subject(name: str) -> Subject:
    """Return the subject of that name."""
    from .peers import PydanticAI, Strands
    from .perdure.subject import Perdure

    known: dict[str, type[Perdure | Strands | PydanticAI]] = {
        kind.name: kind for kind in (Perdure, Strands, PydanticAI)
    }
    return known[name]()


NAMES = ("perdure", "strands", "pydantic_ai")
