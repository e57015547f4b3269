"""Command line of the proof that runs end: `python -m proofs.ending`, a table of seconds.

Each row is played alone: a run is brought to a moment, all slots of its worker are taken, and the run is ended. The
target is two seconds, on a machine with nothing else to do. The exit code is 1 when a row hangs, ends for another
reason, or takes more workflow tasks or attempts than it may. It is 1 too when one takes longer than `--within`.
"""

import argparse
import asyncio
import logging
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from typing import Final

from perdure.errors import PerdureError

from .judge import End, Row, end, played, rows
from .moments import MOMENTS, How, Moment
from .stage import Stage, staged

_WAYS: Final[tuple[How, ...]] = ("stop", "cancel", "deadline")
_DEADLINE: Final = timedelta(seconds=8)
"""Time in which a run reaches its moment; then its deadline ends it."""
_TARGET: Final = 2.0


def main() -> None:
    """Play all rows, and print the table."""
    parser = argparse.ArgumentParser(
        prog="python -m proofs.ending",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("words", nargs="*", help="play the rows whose moment has one of these words")
    parser.add_argument("--within", type=float, default=_TARGET, help="seconds that a row may take")
    options = parser.parse_args()
    chosen = [m for m in MOMENTS if not options.words or any(word in m.name for word in options.words)]
    logging.basicConfig(level=logging.CRITICAL)  # models fail and disks are full by design
    code = asyncio.run(_play_all(chosen, options.within))
    sys.stdout.flush()
    # Python's normal exit crashes in some processes that used Temporal's SDK (sdk-python issue 300).
    os._exit(code)


async def _play_all(moments: Sequence[Moment], within: float) -> int:
    print(f"{'moment':32}{'kind':9}{'way':10}{'seconds':>8}{'tasks':>7}{'attempts':>10}")
    ends: list[End] = []
    faults: list[str] = []
    for wide in (False, True):
        chosen = rows([moment for moment in moments if moment.wide == wide], _WAYS)
        if not chosen:
            continue
        async with staged(wide=wide) as stage:
            for row in chosen:
                try:
                    ends.append(await _play(stage, row))
                except (TimeoutError, PerdureError) as error:
                    faults.append(f"{row.id}: hangs, or did not reach the moment: {error}")
                    continue
                _print(ends[-1])
    faults += [fault for ended in ends for fault in ended.faults()]
    slow = [f"{e.row.id}: {e.seconds:.2f} s, more than {within:g} s" for e in ends if e.seconds > within]
    slowest = max((ended.seconds for ended in ends), default=0.0)
    print(
        f"{len(ends)} ends, the slowest after {slowest:.2f} s; {len(faults)} wrong, {len(slow)} slow; "
        f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} processors"
    )
    for fault in (*faults, *slow):
        print(f"  {fault}")
    return 1 if faults or slow else 0


async def _play(stage: Stage, row: Row) -> End:
    moment, run = row.moment, played(stage, row, _DEADLINE)
    stage.disk.is_full = moment.fills_disk
    if moment.prepare is not None:
        await moment.prepare(run)
    if moment.takes_slots:
        await stage.take_all_slots()
    try:
        await moment.arrive(run)
        return await end(run, row)
    finally:
        stage.disk.is_full = False
        await stage.free_slots()


def _print(ended: End) -> None:
    row = ended.row
    print(
        f"{row.moment.name:32}{row.kind:9}{row.how:10}{ended.seconds:8.2f}{ended.tasks:7}{ended.attempts:10}",
        flush=True,
    )


if __name__ == "__main__":
    main()
