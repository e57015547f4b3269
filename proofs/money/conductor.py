"""Conductor: it starts the parts, plays the trees, kills workers and the server, and hands the bills to the judge."""

import asyncio
import json
import random
from collections import Counter, defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

from perdure import Client, Limits, NotReachable, PerdureError, RunEnded, connect
from perdure.prices import Price, shipped_prices
from perdure.settings import load_settings
from perdure.starter.client.run import Run

from ..chaos.processes import Linked, Server, Worker, own_python, work_folder
from .agents import MODEL
from .judge import Bill, Tree, Verdict

_T = TypeVar("_T")

_QUEUE: Final = "money"
_MEMBERS: Final = ("boss", "boss", "desk", "board")
_WORKERS: Final = 2
_AT_ONCE: Final = 16
_WITHIN: Final = 900.0
"""Seconds after which a tree counts as lost."""
_STOPPED, _TERMINATED = 0.04, 0.04
"""Shares of the trees that are stopped, or of which a run below is terminated."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Run of the proof: its size, its faults and its seed."""

    seed: int
    trees: int
    worker_kills: int
    server_kills: int
    keep: Path | None = None

    def faults(self) -> list[dict[str, Any]]:
        """Return the kills, each at the n-th call that reaches the provider."""
        chance = random.Random(f"faults {self.seed}")
        targets = ["worker"] * self.worker_kills + ["server"] * self.server_kills
        chance.shuffle(targets)
        places = sorted(chance.sample(range(4, max(self.trees * 4, len(targets) + 5)), len(targets)))
        return [
            {"id": number, "at": at, "target": target}
            for number, (at, target) in enumerate(zip(places, targets, strict=True))
        ]


@dataclass
class Stage:
    """Parts of the proof while it goes on."""

    order: Order
    folder: Path
    server: Server
    provider: Linked
    workers: dict[str, Worker] = field(default_factory=dict[str, Worker])
    fired: Counter[str] = field(default_factory=Counter[str])

    async def listen(self) -> None:
        """Kill what the provider's next fault names, then let the provider go on."""
        targets = {fault["id"]: fault["target"] for fault in self.order.faults()}
        async for message in self.provider.messages():
            target = targets[message["fault"]]
            self.fired[target] += 1
            if target == "server":
                await self.server.kill()
                await self.provider.release(message["fault"])
                await self.server.start()
            else:
                self.workers[message["worker"]].kill()
                await self.provider.release(message["fault"])

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Read a file of JSON lines that another part has written."""
        file = self.folder / name
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


async def conduct(order: Order) -> tuple[Verdict, str]:
    """Play all trees, and judge them; return the verdict, and the faults in words."""
    with work_folder(order.keep, "money-") as folder:
        async with _stage(order, folder) as stage:
            client = await connect(
                settings=load_settings(address=stage.server.address, task_queue=_QUEUE, home=folder)
            )
            room = asyncio.Semaphore(_AT_ONCE)

            async def play(number: int) -> Tree:
                async with room:
                    return await _play(client, order.seed, number)

            trees = await asyncio.gather(*(play(number) for number in range(order.trees)))
            price = _price()
            bills: defaultdict[str, Bill] = defaultdict(Bill)
            for line in stage.lines("bills.jsonl"):
                bills[line["tree"]].add(line, price)
            keys = {(line["tree"], line["key"]) for line in stage.lines("notes.jsonl")}
            notes = Counter(tree for tree, _ in keys)
            verdict = Verdict()
            for tree in trees:
                verdict.judge(tree, bills[tree.number], notes[tree.number], price)
            killed = ", ".join(
                f"{count} kills of a {target}" for target, count in sorted(stage.fired.items())
            )
            return verdict, killed


async def _play(client: Client, seed: int, number: int) -> Tree:
    """Play a tree to its end; some are stopped, and of some a run below is terminated."""
    chance = random.Random(f"tree {seed} {number}")
    member, limits = chance.choice(_MEMBERS), _limits(chance)
    fate = chance.random()
    fault = "stopped" if fate < _STOPPED else "terminated" if fate < _STOPPED + _TERMINATED else ""
    result, error = None, ""
    try:
        async with asyncio.timeout(_WITHIN):
            run = await _retry(
                lambda: client.start(
                    member,
                    f"Look into it. [tree-{number}]",
                    id=f"tree-{number}",
                    limits=limits,
                    context={"tree": str(number)},
                )
            )
            if fault == "stopped":
                await asyncio.sleep(chance.uniform(0.2, 2.0))
                with suppress(RunEnded):  # it was faster
                    await _retry(run.stop)
            elif fault == "terminated" and not await _terminate_below(run):
                fault = ""
            result = await _retry(run.result)
    except (PerdureError, TimeoutError) as why:
        result = getattr(why, "result", None)
        error = f"{type(why).__name__}: {why}"
    return Tree(number=str(number), member=member, limits=limits, fault=fault, result=result, error=error)


async def _terminate_below(run: Run) -> bool:
    """Terminate the first run below, as somebody may in Temporal's UI; return False when there was none."""
    while True:
        with suppress(NotReachable):
            status = await run.status()
            below = [node.run_id for node in status.nodes if node.state == "running" and node.run_id]
            if status.stop_reason is not None:
                return False
            if below:
                with suppress(Exception):  # it has ended meanwhile
                    await run.get(below[0]).handle.terminate()
                return True
        await asyncio.sleep(0.05)


def _limits(chance: random.Random) -> Limits:
    """Return limits of one kind, and sometimes a bound of a tool."""
    fields: dict[str, Any] = {"steps": None}
    match chance.choice(("cost", "cost", "total", "output", "input", "none")):
        case "cost":
            fields["cost_usd"] = round(chance.uniform(0.004, 0.07), 4)
        case "total":
            fields["total_tokens"] = chance.randint(2_000, 50_000)
        case "output":
            fields["output_tokens"] = chance.randint(150, 2_500)
        case "input":
            fields["input_tokens"] = chance.randint(2_000, 50_000)
        case _:
            pass
    if chance.random() < 0.4:
        fields["per_tool"] = {"note": chance.randint(0, 3)}
    return Limits.model_validate(fields)


def _price() -> Price:
    price = shipped_prices().find(MODEL, datetime.now(UTC).date())
    assert price is not None, f"the price of {MODEL} is known"
    return price


async def _retry(ask: Callable[[], Awaitable[_T]]) -> _T:
    """Call `ask` until the server is reached, as a caller would."""
    while True:
        try:
            return await ask()
        except NotReachable:
            await asyncio.sleep(0.3)


@asynccontextmanager
async def _stage(order: Order, folder: Path) -> AsyncGenerator[Stage]:
    """Start all parts; stop them when the block ends."""
    async with AsyncExitStack() as stack:
        server = Server(folder)
        await server.start()
        stack.push_async_callback(server.stop)
        command = [own_python(), "-m", "proofs.money.provider", "--bills", str(folder / "bills.jsonl")]
        provider = Linked([*command, "--seed", str(order.seed)], folder / "provider.log")
        stage = Stage(order=order, folder=folder, server=server, provider=provider)
        stack.push_async_callback(provider.kill)
        await provider.start("--faults", json.dumps(order.faults()))
        listening = asyncio.create_task(stage.listen())
        stack.callback(listening.cancel)
        for number in range(1, _WORKERS + 1):
            worker = _worker(stage, f"worker-{number}")
            stage.workers[worker.name] = worker
            stack.push_async_callback(worker.stop)
        await asyncio.gather(*(worker.start() for worker in stage.workers.values()))
        yield stage
        if listening.done():
            listening.result()  # a fault that could not be caused is an error of the proof


def _worker(stage: Stage, name: str) -> Worker:
    env = {
        "ANTHROPIC_API_KEY": name,  # tells the provider which worker asks
        "MONEY_PROVIDER": f"http://127.0.0.1:{stage.provider.port}",
        "MONEY_NOTES": str(stage.folder / "notes.jsonl"),
        "PERDURE_ADDRESS": stage.server.address,
        "PERDURE_TASK_QUEUE": _QUEUE,
        "PERDURE_HOME": str(stage.folder),
        # Many calls fail here by design, and an open circuit would only make the proof wait.
        "PERDURE_CIRCUIT_THRESHOLD": "1000",
        "PERDURE_PARKED_RETRY": "1s",
    }
    command = [own_python(), "-m", "perdure.workers", "proofs.money.agents"]
    return Worker(name, command, env, stage.folder / f"{name}.log")
