"""Command line of the proof of money.

python -m proofs.money run                 # 500 trees, kills of workers and the server: a quarter of an hour
python -m proofs.money run --trees 60 --seed 2 --keep /tmp/money
python -m proofs.money quick               # a smoke test, for every change
"""

import argparse
import asyncio
import sys
import time
from pathlib import Path

from .conductor import Order, conduct
from .judge import Verdict

_SHOWN = 20
"""Broken promises that are printed."""


def main() -> None:
    """Run the command given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proofs.money", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="play many trees under faults")
    run.add_argument("--trees", type=int, default=500)
    run.add_argument("--seed", type=int, default=1)
    run.add_argument("--keep", type=Path, help="keep the logs and bills in this folder")
    quick = commands.add_parser("quick", help="a smoke test, for every change")
    quick.add_argument("--seed", type=int, default=1)
    quick.add_argument("--keep", type=Path)
    options = parser.parse_args()
    if options.command == "quick":
        order = Order(seed=options.seed, trees=16, worker_kills=2, server_kills=1, keep=options.keep)
    else:
        kills = max(options.trees // 20, 1)
        server_kills = max(options.trees // 100, 1)
        order = Order(
            seed=options.seed,
            trees=options.trees,
            worker_kills=kills,
            server_kills=server_kills,
            keep=options.keep,
        )
    began = time.monotonic()
    verdict, faults = asyncio.run(conduct(order))
    print(format_verdict(verdict, faults, time.monotonic() - began), flush=True)
    sys.exit(0 if verdict.holds else 1)


def format_verdict(verdict: Verdict, faults: str, seconds: float) -> str:
    """Return the verdict in words."""
    ends = ", ".join(f"{count} {reason}" for reason, count in sorted(verdict.ends.items()))
    head = f"{verdict.trees} trees, {verdict.calls} billed calls, {faults}, {seconds:.0f} s"
    booked = f"booked exactly {verdict.exact}, estimated {verdict.estimated}, unknown {verdict.unknown}"
    billed, sum_ = verdict.billed_microusd / 1e6, verdict.booked_microusd / 1e6
    lines = [
        f"{'ok  ' if verdict.holds else 'FAIL'} money: {head}",
        f"     {booked}; billed ${billed:.4f}, booked ${sum_:.4f}",
        f"     ended by {ends}",
        f"     {len(verdict.broken)} promises broken",
        *verdict.broken[:_SHOWN],
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
