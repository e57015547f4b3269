"""A reply that the blob store does not take has cost what it cost, with all the attempts before it."""

from collections import Counter
from collections.abc import AsyncIterator
from datetime import timedelta
from hashlib import sha256

from perdure import Agent, Limits, ModelError, Usage
from perdure.messages import Text
from perdure.model import ModelConfig, ModelEvent, ModelRequest, Reply, UsageSoFar
from perdure.settings import Settings
from perdure.starter.client.connect import Client
from tests.conftest import check_rows, until_status
from tests.serving import running

ANSWER = "a long answer " * 4000
USED = Usage(input_tokens=1000, output_tokens=8000)
SOON = timedelta(milliseconds=20)


class Disk:
    """Store in memory that has no room for the answer."""

    def __init__(self) -> None:
        self.blobs: dict[str, bytes] = {}

    async def put(self, data: bytes) -> str:
        if ANSWER.encode() in data:
            raise OSError("no space left on device")
        name = sha256(data).hexdigest()
        self.blobs[name] = data
        return name

    async def get(self, name: str) -> bytes:
        return self.blobs[name]


class Provider:
    """Provider that bills each attempt, and cuts as many as the run's user says."""

    def __init__(self) -> None:
        self.attempts: Counter[str] = Counter()

    def check(self, config: ModelConfig) -> None: ...

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        row = str(request.user)
        self.attempts[row] += 1
        yield UsageSoFar(usage=USED)
        if self.attempts[row] <= int(row):
            raise ModelError("stream_cut", "the line was cut", retry_after=SOON)
        yield Reply(parts=(Text(text=ANSWER),), stop="end_turn", usage=USED)


async def test_unkept_answer_is_booked_with_earlier_attempts(settings: Settings) -> None:
    """However many attempts were billed before the one whose answer could not be kept, all are booked."""
    provider = Provider()
    writer = Agent(name="writer", model="provider:x", limits=Limits(output_tokens=1_000_000))

    async def check(client: Client, cuts: int) -> None:
        run = await client.start("writer", "Write.", user=str(cuts))
        await until_status(client, run.id, "parked")
        status = await run.status()
        assert status.failure is not None
        assert status.failure.kind == "storage"
        assert provider.attempts[str(cuts)] == cuts + 1
        billed = (cuts + 1) * USED.output_tokens
        assert billed <= status.usage.output_tokens <= 1.05 * billed
        assert status.usage.estimated
        await run.stop()

    served = running(
        [writer], models={"provider": provider}, address=settings.address, settings=settings, blobs=Disk()
    )
    async with served as client:
        await check_rows({f"{cuts} cut": check(client, cuts) for cuts in (0, 1, 3)})
