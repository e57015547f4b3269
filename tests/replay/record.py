"""Records histories: `python -m tests.replay.record VERSION` writes them to `histories/VERSION/`.

Those of a release are recorded once. `histories/releases.json` holds a digest of each, so that nobody records one anew
to make a change pass. Those of "unreleased" may be recorded as often as you like.
"""

import asyncio
import json
import re
import sys
from collections import Counter
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

from perdure.settings import load_settings
from perdure.starter.client.connect import Client
from perdure.workers.dev.server import DevServer
from tests.serving import running

from .scenarios import AGENTS, MODELS, TEAM_SESSIONS, TEAMS, play

HISTORIES = Path(__file__).parent / "histories"
RELEASES = HISTORIES / "releases.json"


def is_release(version: str) -> bool:
    """Return whether this names a release, and not the work on the next."""
    return re.fullmatch(r"\d+\.\d+\.\d+", version) is not None


def newest_release() -> Path:
    """Return the folder with the histories of the newest release."""
    versions = [folder.name for folder in HISTORIES.iterdir() if is_release(folder.name)]
    return HISTORIES / max(versions, key=lambda version: [int(number) for number in version.split(".")])


def digest_of(version: str) -> str:
    """Return the SHA-256 of all histories of a version, with their names."""
    digest = sha256()
    for path in sorted((HISTORIES / version).glob("*.json")):
        digest.update(f"{path.name} {sha256(path.read_bytes()).hexdigest()}\n".encode())
    return digest.hexdigest()


async def record(version: str) -> None:
    """Play every scenario on a server that makes long runs continue as new, and keep what it wrote.

    Raises:
        SystemExit: the version is a release that was recorded before.

    """
    folder = HISTORIES / version
    releases: dict[str, str] = json.loads(RELEASES.read_text()) if RELEASES.exists() else {}
    if version in releases:
        sys.exit(f"{version} is released: its histories stay as they are; record `unreleased`")
    folder.mkdir(parents=True, exist_ok=True)
    config = {"limit.historyCount.suggestContinueAsNew": "60"}
    with TemporaryDirectory() as home:
        async with DevServer.start(db=None, ui_port=False, dynamic_config=config) as server:
            # An outage of some seconds, and naps of some tenths.
            fast = {"circuit_threshold": 1, "circuit_wait": "3s", "parked_retry": "200ms"}
            settings = load_settings(home=Path(home), address=server.address, **fast)
            async with running(
                [*AGENTS, *TEAMS], models=MODELS, address=server.address, settings=settings
            ) as client:
                for name in [*(agent.name for agent in [*AGENTS, *TEAMS]), *TEAM_SESSIONS]:
                    await play(client, name)
                    await keep(client, name, folder)
    if is_release(version):
        RELEASES.write_text(json.dumps({**releases, version: digest_of(version)}, indent=1) + "\n")


async def keep(client: Client, name: str, folder: Path) -> None:
    """The run's history and those of the runs below it; a "/" in a run's id becomes a "=" in the name."""
    root = f"replay-{name}"
    executions = client.temporal.list_workflows(f'WorkflowId = "{root}" OR WorkflowId STARTS_WITH "{root}/"')
    runs = sorted([execution async for execution in executions], key=lambda e: e.start_time)
    numbers = Counter[str]()
    for execution in runs:
        numbers[execution.id] += 1
        number = numbers[execution.id]
        name = execution.id.removeprefix("replay-").replace("/", "=")
        handle = client.temporal.get_workflow_handle(execution.id, run_id=execution.run_id)
        history = await handle.fetch_history()
        plain = _scrubbed(json.loads(history.to_json()))
        (folder / f"{name}-{number}.json").write_text(json.dumps(plain, indent=1) + "\n")


def _scrubbed(value: Any) -> Any:
    """Without what says where it was recorded: replay looks at neither stack traces nor identities."""
    if isinstance(value, dict):
        fields = cast("dict[str, Any]", value)
        kept = {key: _scrubbed(each) for key, each in fields.items() if key != "stackTrace"}
        return {**kept, "identity": "recorder"} if "identity" in kept else kept
    if isinstance(value, list):
        items: list[Any] = value  # pyright: ignore[reportUnknownVariableType]
        return [_scrubbed(each) for each in items]
    return value


if __name__ == "__main__":
    asyncio.run(record(sys.argv[1]))
