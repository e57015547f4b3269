"""`kill -9` around a remote call: the bank's worker, Perdure's, or both. The key stays, and one charge is made."""

import asyncio
from collections.abc import Iterator

import pytest

from perdure import connect
from perdure.settings import Settings
from tests.conftest import HANGS, until

from .conftest import Crew

CREW = "tests.process.bank"


@pytest.fixture
def bank(workers: Crew) -> Iterator[Crew]:
    """Start the bank's own worker, which knows nothing of Perdure."""
    yield from workers.beside("tests.process.bank")


@pytest.mark.parametrize(
    ("killed", "expected"),
    [
        ("bank", ("had been done already", ["1", "2"])),
        pytest.param("perdure", ("done", ["1"]), marks=pytest.mark.cold),
        pytest.param("both", ("had been done already", ["1", "2"]), marks=pytest.mark.cold),
    ],
)
async def test_killed_remote_call_keeps_its_key(
    workers: Crew, bank: Crew, settings: Settings, killed: str, expected: tuple[str, list[str]]
) -> None:
    """Whoever dies in a remote write, its repetition has the key of the first attempt, and a higher number."""
    client = await connect(settings=settings)
    run = await client.start("payer", "go")

    async def is_charged() -> bool:
        return bool(workers.happened("bank"))

    await until(is_charged)
    for name, crew in (("bank", bank), ("perdure", workers)):
        if killed in (name, "both"):
            crew.kill()
            crew.start()
    workers.ledger.with_suffix(".go").touch()
    async with asyncio.timeout(HANGS):
        result = await run.result()
    assert (result.output, [attempt for _, _, attempt in workers.happened("bank")]) == expected
    assert len({key for _, key, _ in workers.happened("bank")}) == 1
    assert workers.effects() == [("bank", "charge")]
