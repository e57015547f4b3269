"""The support desk, through a killed worker and an approval. Exit code 0: every claim was checked.

python examples/support_desk/demo.py             # needs no key and no terminal
python examples/support_desk/demo.py --keep      # leaves it up for looking around
"""

import argparse
import asyncio
import contextlib
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from urllib.request import ProxyHandler, build_opener

from agent import MODEL
from narration import Claims, Disproved, Stuck, alarm, heading, say, table, told
from shop import Entry, Shop, open_shop
from stage import Stage, stage, until

from perdure import Run, RunResult
from perdure.errors import PerdureError
from perdure.starter.client.listing import RunInfo
from perdure.starter.client.steps import StepCall
from perdure.wire.events import Event, TextDelta, ToolProgress
from perdure.wire.results import Approval

SCRIPTED = MODEL.startswith("scripted:")
SPEAKER = "script" if SCRIPTED else "model"

ANN, ANNS_ORDER, ANNS_CITY = "ann.lindqvist@example.com", "W2378156", "Uppsala"
BRAMS_ORDER, BRAMS_CITY = "W4847310", "Ghent"
CHIARAS_ORDER = "W6081887"

LONGEST = timedelta(minutes=5)
"""With a model that takes its time; a script needs half a minute."""


@dataclass(frozen=True, kw_only=True)
class Options:
    keep: bool
    pause_at: str | None
    free_ports: bool


@dataclass(kw_only=True)
class Demo:
    """One performance."""

    stage: Stage
    shop: Shop
    options: Options
    claims: Claims = field(default_factory=Claims)
    results: dict[str, RunResult] = field(default_factory=dict[str, RunResult])

    async def play(self) -> None:
        await self.curtain()
        await self.question()
        await self.killed_while_reading()
        await self.refund_with_approval()
        await self.bill()

    async def curtain(self) -> None:
        heading("1. A Temporal server, and a worker as a process of its own")
        status = await asyncio.to_thread(_get, self.stage.ui)
        self.claims.check(status == 200, f"the Temporal UI answers at {self.stage.ui}")
        say(f"    server {self.stage.server.address}, pid {self.stage.server.pid}")
        say(f"    worker pid {await self.stage.start_worker()}")
        say("    Look at the UI while this plays: the Timeline of a run names every model and tool call,")
        say("    its tab User Metadata says where the run is and what it waits for.")

    async def question(self) -> None:
        heading("2. A question, answered through several tool calls")
        run = await self.ask("where-is-my-parcel", f"Hello, I am {ANN}. Where is my parcel?")
        pieces = [event async for event in told(run, speaker=SPEAKER) if isinstance(event, TextDelta)]
        result = await self.ended(run)
        check = self.claims.check
        last = [piece for piece in pieces if piece.step == result.steps]
        check(len(last) > 1, f"the answer was shown while it was written, in {len(last)} pieces")
        check(result.tool_calls >= 3, f"{result.tool_calls} tool calls in {result.steps} steps")
        check(
            ANNS_ORDER in str(result.output) and ANNS_CITY in str(result.output),
            f"the answer names the order and the city that the tools found: {ANNS_ORDER}, {ANNS_CITY}",
        )

    async def killed_while_reading(self) -> None:
        heading("3. kill -9 of the worker, in the middle of a run")
        prompt = (
            f"My order {BRAMS_ORDER} has not come. Please note that my neighbour takes parcels in. "
            "Then tell me where it is."
        )
        say("The agent writes a note, then tracks the parcel. While it tracks, its worker dies.")
        run = await self.ask("worker-killed", prompt)
        killed = False
        async for event in told(run, speaker=SPEAKER):
            if _is_midway(event) and not killed:
                killed = True
                noted = self.shop.order(BRAMS_ORDER).notes
                self.claims.check(len(noted) == 1, "the note is written; the parcel is being tracked; now:")
                await self.replace_worker()
        result = await self.ended(run)
        tracking = await _call(run, "track_parcel")
        note, tracked = self.ledger(BRAMS_ORDER, "add_note"), self.ledger(BRAMS_ORDER, "track_parcel")
        self.show_ledger(BRAMS_ORDER)
        check = self.claims.check
        check(killed and BRAMS_CITY in str(result.output), "the run went on from where it was, and answered")
        check(note.begun == note.changes == 1, "the note, written before, was not even tried again")
        check(len(self.shop.order(BRAMS_ORDER).notes) == 1, "one note is on the order")
        check(
            tracked.begun == tracking.attempts == 2,
            "the tracking, cut in the middle, was begun again from the start: it only reads",
        )
        if SCRIPTED:  # a real provider may have been too busy at first
            check(all(step.attempts == 1 for step in await run.steps()), "no model call was made twice")

    async def refund_with_approval(self) -> None:
        heading("4. A refund that waits for a person, and a kill -9 at the worst moment")
        prompt = f"One vase of order {CHIARAS_ORDER} came broken. Please refund $27.50."
        say("A refund is a write that a person decides about. When it is allowed, the worker dies after the")
        say("shop has booked it and before Temporal knows: there, only the idempotency key helps.")
        run = await self.ask("refund-approval", prompt)
        waiting = await until(self.waiting_for_approval, "a run that waits for approval")
        say('    found by the query AgentStatus = "waiting_approval":')
        self.claims.check([info.id for info in waiting] == [run.id], f"{run.id} waits, and nothing else")
        status = await run.status()
        approval = next(wanted for wanted in status.waiting if isinstance(wanted, Approval))
        _show_approval(approval)
        self.claims.check(not self.shop.refunds(CHIARAS_ORDER), "no money has moved")
        if self.options.pause_at == "approval":
            page = f"{self.stage.link(run.id)}/{(await run.describe()).run_id}/user-metadata"
            say(f"    Held here until somebody decides: {page}")
            say(f"    or by: PERDURE_ADDRESS={self.stage.server.address} perdure approve {run.id}")
        else:
            await run.resolve_approval(approval.call_id, allow=True, by="demo", digest=approval.digest)
            say("    allowed, by run.resolve_approval(...)")
        if await until(lambda: self.booked_or_over(run), "the refund", within=None) == "booked":
            say("    The refund is in the database. Temporal does not know yet. Now:")
            await self.replace_worker()
        async for _ in told(run, speaker=SPEAKER, after_message=status.messages):
            pass
        await self.ended(run)
        await self.check_refund(run, approval)

    async def check_refund(self, run: Run, approval: Approval) -> None:
        check = self.claims.check
        refunds = self.shop.refunds(CHIARAS_ORDER)
        if (await _call(run, "refund_order")).is_error:
            check(not refunds, "the refund was refused, and none was made")
            return
        self.show_ledger(CHIARAS_ORDER)
        entry = self.ledger(CHIARAS_ORDER, "refund_order")
        check(entry.begun == 2, "the refund was tried twice, both times with the same idempotency key")
        check(entry.changes == len(refunds) == 1, "and made once: one row in the refunds table")
        amount = refunds[0].amount_cents
        if self.options.pause_at is None:  # else a person may have approved another one
            check(amount == approval.arguments.get("amount_cents"), f"of what was approved: {amount} cents")
        check(await _decisions(run) == 1, "a person was asked once: one decision is in Temporal's history")

    async def bill(self) -> None:
        heading("5. What it took")
        cost = "simulated cost" if SCRIPTED else "cost"
        table(
            ["run", "steps", "tool calls", "tokens", cost, "stop reason"],
            [
                (name, r.steps, r.tool_calls, r.usage.total_tokens, _dollars(r.cost_microusd), r.stop_reason)
                for name, r in self.results.items()
            ],
        )
        if SCRIPTED:
            say("    (No model was asked: tokens are counted at four bytes each, prices are made up.)")
        say()
        for name in self.results:
            say(f"    {self.stage.link(name)}")
        say()
        listed = await until(self.all_completed, "the list of runs to be up to date")
        self.claims.check(listed, f"all {len(self.results)} runs are listed as completed")

    # -- what the scenes share

    async def ask(self, run_id: str, prompt: str) -> Run:
        run = await self.stage.client.start("support", prompt, id=run_id, user="demo")
        say(f"    {self.stage.link(run_id)}")
        say(f"customer  {prompt}")
        return run

    async def ended(self, run: Run) -> RunResult:
        result = self.results[run.id] = await run.result()
        self.claims.check(result.stop_reason == "end_turn", f"{run.id} ended by itself")
        return result

    async def replace_worker(self) -> None:
        alarm(f"kill -9 {await self.stage.kill_worker()}")
        say(f"    new worker, pid {await self.stage.start_worker()}")

    def ledger(self, order_id: str, tool: str) -> Entry:
        """The order's one entry of that tool. Raises Disproved when there are more, or none."""
        entries = [entry for entry in self.shop.ledger(order_id) if entry.tool == tool]
        if len(entries) != 1:
            raise Disproved(f"one call of {tool} about {order_id}; there are {len(entries)}")
        return entries[0]

    def show_ledger(self, order_id: str) -> None:
        say(f"    The shop's ledger for {order_id}:")
        table(
            ["idempotency key", "tool", "times begun", "changes made"],
            [
                (f"{entry.key[:16]}...", entry.tool, entry.begun, entry.changes)
                for entry in self.shop.ledger(order_id)
            ],
        )

    async def waiting_for_approval(self) -> list[RunInfo]:
        return [info async for info in self.stage.client.list(status="waiting_approval")]

    async def all_completed(self) -> bool:
        infos = [info async for info in self.stage.client.list(agent="support", status="completed")]
        return {info.id for info in infos} == set(self.results)

    async def booked_or_over(self, run: Run) -> str | None:
        if self.shop.refunds(CHIARAS_ORDER):
            return "booked"
        return "over" if (await run.describe()).close_time else None


def _show_approval(approval: Approval) -> None:
    say(f"    {approval.call_id} wants to call {approval.tool}:")
    for name, value in approval.arguments.items():
        say(f"      {name} = {value!r}")
    say(f"    digest of exactly this: {approval.digest[:16]}...")


def _is_midway(event: Event) -> bool:
    """Whether the tracking is under way. Only the newest stage is told, so one may be missed."""
    return isinstance(event, ToolProgress) and event.text.startswith(("2 of", "3 of"))


async def _call(run: Run, tool: str) -> StepCall:
    """What Temporal knows of the run's one call of that tool. Raises Disproved when it made none, or more."""
    made = [call for step in await run.steps() for call in step.tool_calls if call.tool == tool]
    if len(made) != 1:
        raise Disproved(f"{run.id} calls {tool} once; it called it {len(made)} times")
    return made[0]


async def _decisions(run: Run) -> int:
    """How many decisions the run was given."""
    history = run.handle.fetch_history_events()
    accepted = [
        event.HasField("workflow_execution_update_accepted_event_attributes") async for event in history
    ]
    return sum(accepted)


def _dollars(microusd: int | None) -> str:
    return "unknown" if microusd is None else f"${microusd / 1_000_000:.4f}"


def _get(url: str) -> int:
    with build_opener(ProxyHandler({})).open(url, timeout=10) as response:
        return int(response.status)


async def perform(options: Options, home: Path) -> None:
    say("Perdure demo: a support desk over a shop's SQLite database.")
    say(f"Model: {MODEL}" + (" (SCRIPTED: ANTHROPIC_API_KEY is not set)" if SCRIPTED else ""))
    async with stage(home, usual_ports=not options.free_ports) as set_up:
        demo = Demo(stage=set_up, shop=open_shop(), options=options)
        async with asyncio.timeout(None if options.pause_at else LONGEST.total_seconds()):
            await demo.play()
        say()
        say(f"All {demo.claims.count} claims were checked, by the shop's database and Temporal's history.")
        if options.keep:
            await _keep(set_up, home)


async def _keep(set_up: Stage, home: Path) -> None:
    say()
    say(f"Still up until Ctrl-C: {set_up.ui}")
    say(f"In another terminal:  export PERDURE_ADDRESS={set_up.server.address} PERDURE_HOME={home}")
    say('                      perdure run support "Where is order W2378156?"')
    told_to_stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, told_to_stop.set)
    await told_to_stop.wait()


async def _main(options: Options) -> int:
    task = asyncio.current_task()
    assert task is not None
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    home = Path(tempfile.mkdtemp(prefix="perdure-demo-"))
    try:
        await perform(options, home)
    except (Disproved, Stuck, PerdureError, TimeoutError, RuntimeError) as error:
        alarm(f"FAILED: {str(error) or f'not over within {LONGEST}'}")
        say(f"    Logs and databases are kept in {home}")
        return 1
    except asyncio.CancelledError:
        say("stopped")
        shutil.rmtree(home)
        return 130
    shutil.rmtree(home)
    return 0


def _options(arguments: Sequence[str] | None = None) -> Options:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--keep", action="store_true", help="leave server and worker up until Ctrl-C")
    parser.add_argument(
        "--pause-at", choices=["approval"], help="let a person decide, in the UI or by `perdure approve`"
    )
    parser.add_argument("--free-ports", action="store_true", help="leave ports 7233 and 8233 alone")
    given = parser.parse_args(arguments)
    return Options(keep=given.keep, pause_at=given.pause_at, free_ports=given.free_ports)


if __name__ == "__main__":
    code = 130
    with contextlib.suppress(KeyboardInterrupt):
        code = asyncio.run(_main(_options()))
    sys.stdout.flush()
    # Python's own way out may crash in a short process that used Temporal's SDK (sdk-python issue 300).
    os._exit(code)
