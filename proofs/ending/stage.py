"""Stage of the proof: a server, a worker with few slots, agents that wait where they are told to, and a full disk."""

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, ClassVar, Final

from temporalio import activity
from temporalio.worker import ActivityInboundInterceptor, ExecuteActivityInput, Interceptor

from perdure import Agent, Graph, NodeResult, Swarm, tool
from perdure.activities.content.blobs import open_store
from perdure.blobs import BlobStore
from perdure.errors import ModelError
from perdure.hooks import Hook
from perdure.members import Member
from perdure.messages import Part, Text, ToolCall, Usage
from perdure.model import ModelConfig, ModelEvent, ModelRequest, Reply, TextDelta, UsageSoFar
from perdure.pattern import Over, Pattern, PatternSpec, Scheduler, Start, by_name
from perdure.settings import load_settings
from perdure.starter.client.connect import Client
from perdure.testing import running
from perdure.workers.dev.server import DevServer

SLOTS: Final = 4
"""Activities that the narrow worker runs at once. All of them can be taken, so nothing else can start."""
CROWD: Final = 50
"""Children in flight at once, on the wide worker."""
_WIDE: Final = 4 * CROWD
EVENTS_BEFORE_RENEWAL: Final = 60
_LONG: Final = "x" * 40_000
"""Text that is kept in the blob store, wherever it stands."""


class FullStoreError(Exception):
    """The disk is full."""


@dataclass
class Disk:
    """Blob store that accepts nothing while it is full."""

    store: BlobStore
    is_full: bool = False

    async def put(self, data: bytes) -> str:
        """Keep the data."""
        if self.is_full:
            raise FullStoreError("no space left on device")
        return await self.store.put(data)

    async def get(self, name: str) -> bytes:
        """Return the data."""
        return await self.store.get(name)


@dataclass
class Attempts(Interceptor):
    """Notes when each attempt of an activity begins, by the root of its run."""

    begun: dict[str, list[datetime]] = field(default_factory=lambda: defaultdict(list))

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """Note each attempt."""
        return _Noting(next, self.begun)


class _Noting(ActivityInboundInterceptor):
    def __init__(self, following: ActivityInboundInterceptor, begun: dict[str, list[datetime]]) -> None:
        super().__init__(following)
        self._begun = begun

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        self._begun[(activity.info().workflow_id or "").split("/")[0]].append(datetime.now(UTC))
        return await super().execute_activity(input)


@dataclass
class Hanging:
    """Model whose agents hang, pay, delegate or fail, each as its model's name says."""

    release: asyncio.Event = field(default_factory=asyncio.Event)
    hogs: int = 0
    """Calls of hogs that have a slot."""
    hanging: Counter[str] = field(default_factory=Counter[str])
    """Other calls that hang, by model."""
    read: Counter[str] = field(default_factory=Counter[str])
    """Input tokens that calls have read, by user."""

    def check(self, config: ModelConfig) -> None:
        """Accept any name."""

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        """Answer as the model's name says."""
        self.read[str(request.user)] += _READ.input_tokens
        yield UsageSoFar(usage=_READ)
        role, step = request.config.model, request.step
        match role:
            case "hog":
                self.hogs += 1
                try:
                    await self.release.wait()
                finally:
                    self.hogs -= 1
                yield _says("held a slot")
            case "hangs":
                yield TextDelta(text="I think")
                self.hanging[role] += 1
                await asyncio.Event().wait()
            case "pays" if step == 1:
                yield _calls("pay")
            case "delegates" if step == 1:
                yield _calls(*[tool.name for tool in request.tools][:1])
            case "crowds" if step == 1:
                yield _calls(*["hanger"] * CROWD)
            case "works" if step <= _STEPS_BEFORE_RENEWAL:
                yield _calls("tick")
            case "works" if step == _STEPS_BEFORE_RENEWAL + 1:
                yield _calls("payer")
            case "fails":
                raise ModelError("authentication", "the key is wrong")
            case "boasts":
                yield _says(_LONG)
            case _:
                yield _says("done")


_STEPS_BEFORE_RENEWAL: Final = 3
_READ: Final = Usage(input_tokens=100)
_USED: Final = Usage(input_tokens=100, output_tokens=5)


def _says(text: str) -> Reply:
    return Reply(parts=(Text(text=text),), stop="end_turn", usage=_USED)


def _calls(*names: str) -> Reply:
    calls = tuple(
        ToolCall(id=f"x{number}", name=name, arguments=_arguments(name)) for number, name in enumerate(names)
    )
    return Reply(parts=calls, stop="tool_calls", usage=_USED)


def _arguments(name: str) -> dict[str, Any]:
    return {} if name in ("pay", "tick") else {"input": "go"}


@tool(effect="write", approval=True)
async def pay() -> str:
    """Pay."""
    return "paid"


@tool
async def tick() -> str:
    """Tick."""
    return "tock"


class Inspector(Hook):
    """Hook that looks at the end of a run, in an activity of its own."""

    async def on_end(self, run: Any) -> None:
        """Let it pass."""


def _agent(name: str, role: str, **settings: Any) -> Agent:
    return Agent(name=name, model=f"hanging:{role}", description=f"{role}.", **settings)


@dataclass(frozen=True, kw_only=True)
class Progress:
    """Progress of a pattern that runs its members in their order."""

    started: int = 0
    ended: int = 0
    output: Any = None


class OneByOne(Scheduler[Progress]):
    """Scheduler of a user's own."""

    progress_type = Progress
    runs_alone = True

    def __init__(self, spec: PatternSpec) -> None:
        self.names = tuple(spec.members)

    def begin(self, task: str | list[Part], descriptions: Mapping[str, str]) -> Progress:
        """Return the progress before the first member."""
        return Progress()

    def startable(self, progress: Progress) -> list[Start]:
        """Return the next member, once the one before it has ended."""
        if progress.started > progress.ended or progress.started == len(self.names):
            return []
        name = self.names[progress.started]
        return [Start(key=f"{name}-1", node=name, prompt="go")]

    def record_start(self, progress: Progress, starts: Sequence[Start]) -> Progress:
        """Return the progress with that member running."""
        return replace(progress, started=progress.started + len(starts))

    def record_end(self, progress: Progress, result: NodeResult) -> Progress:
        """Return the progress with the member's answer."""
        return replace(progress, ended=progress.ended + 1, output=result.output)

    def over(self, progress: Progress) -> Over | None:
        """Return the last answer, once all members have ended."""
        is_over = progress.ended == len(self.names)
        return Over(stop_reason="end_turn", output=progress.output) if is_over else None

    def partial(self, progress: Progress) -> Any:
        """Return the newest answer."""
        return progress.output


@dataclass(frozen=True, kw_only=True)
class Queue(Pattern):
    """Pattern of a user's own, whose members work one by one."""

    pattern: ClassVar = "queue"
    scheduler: ClassVar = OneByOne

    steps: tuple[Agent, ...]

    @property
    def members(self) -> Mapping[str, Member]:
        """Members, in their order."""
        return by_name(self.steps)


def cast() -> Sequence[Member]:
    """Return the agents and teams of the proof."""
    payer = _agent("payer", "pays", tools=[pay])
    hanger, following = _agent("hanger", "hangs"), _agent("next", "says")
    return (
        _agent("hog", "hog"),
        _agent("plain", "says"),
        payer,
        hanger,
        _agent("wordy", "says", instructions=_LONG),
        _agent("boaster", "boasts"),
        _agent("broken", "fails"),
        _agent("inspected", "pays", tools=[pay], hooks=[Inspector()]),
        _agent("boss", "delegates", tools=[payer.as_tool()]),
        _agent("worker", "works", tools=[tick, payer.as_tool()]),
        _agent("leader", "crowds", tools=[hanger.as_tool()]),
        Swarm(name="swarm", agents=[payer]),
        Queue(name="pattern", steps=(payer, following)),
        Graph(
            name="graph",
            nodes={"first": payer, "second": following},
            edges=[("first", "second")],
            entry="first",
        ),
        Graph(
            name="wide_graph",
            nodes={f"n{number}": hanger for number in range(CROWD)},
            entry=[f"n{number}" for number in range(CROWD)],
            concurrency=CROWD,
        ),
    )


@dataclass
class Stage:
    """Server and worker of the proof, and what its rows share."""

    client: Client
    model: Hanging
    disk: Disk
    attempts: Attempts
    slots: int
    hogs: int = 0

    async def take_all_slots(self) -> None:
        """Let hogs take every slot of the worker."""
        self.model.release.clear()
        for _ in range(self.slots):
            self.hogs += 1
            await self.client.start("hog", "hold", id=f"hog-{self.hogs}", stream=False)

        async def are_taken() -> bool:
            return self.model.hogs == self.slots

        await until(are_taken)

    async def free_slots(self) -> None:
        """Let the hogs end."""
        self.model.release.set()

        async def are_free() -> bool:
            return self.model.hogs == 0

        await until(are_free)


async def until(true: Callable[[], Awaitable[bool]], *, within: float = 180.0) -> None:
    """Poll until the condition holds; raise TimeoutError when it does not come to hold."""
    async with asyncio.timeout(within):
        while not await true():
            await asyncio.sleep(0.03)


@asynccontextmanager
async def staged(*, wide: bool = False) -> AsyncGenerator[Stage]:
    """Run a server and a worker; the wide one has room for a crowd."""
    slots = _WIDE if wide else SLOTS
    config = {"limit.historyCount.suggestContinueAsNew": str(EVENTS_BEFORE_RENEWAL)}
    model, attempts = Hanging(), Attempts()
    with TemporaryDirectory(prefix="perdure-ending-", ignore_cleanup_errors=True) as home:
        async with DevServer.start(db=None, ui_port=False, dynamic_config={} if wide else config) as server:
            settings = load_settings(home=Path(home), address=server.address)
            disk = Disk(open_store(settings.blob_store))
            worker = {"max_concurrent_activities": slots, "interceptors": [attempts]}
            async with running(
                cast(),
                models={"hanging": model},
                address=server.address,
                settings=settings,
                blobs=disk,
                worker=worker,
                parked="wait",
            ) as client:
                yield Stage(client=client, model=model, disk=disk, attempts=attempts, slots=slots)
