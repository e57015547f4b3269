"""Command line of the proof of long conversations.

python -m proofs.conversations run                       # ten sessions of twenty tasks, under each way
python -m proofs.conversations run window summary --sessions 2
python -m proofs.conversations report                    # docs/conversations from the last results
"""

import argparse
import asyncio
import datetime as dt
import os
import platform
from pathlib import Path

from proofs.chaos.environments import bfcl_environment

from . import report
from .play import WAYS, keep, play
from .sessions import make_sessions

FOLDER = Path(__file__).resolve().parents[2] / "docs" / "conversations"
RESULTS = FOLDER / "results.json"


def main() -> None:
    """Run the command given on the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m proofs.conversations", formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="play the sessions")
    run.add_argument("ways", nargs="*", metavar="WAY", choices=[[], *WAYS], help=", ".join(WAYS))
    run.add_argument("--sessions", type=int, default=10)
    run.add_argument("--length", type=int, default=20, help="tasks of a session")
    run.add_argument("--out", type=Path, default=RESULTS)
    commands.add_parser("report", help="write docs/conversations from the last results")
    options = parser.parse_args()
    if options.command == "report":
        report.write(RESULTS, FOLDER / "README.md")
    else:
        _run(options)


def _run(options: argparse.Namespace) -> None:
    _, _, catalogue = bfcl_environment()
    sessions = make_sessions(catalogue.tasks, options.length, options.sessions)
    head = {
        "at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "length": options.length,
    }
    for way in options.ways or WAYS:
        score = asyncio.run(play(way, sessions))
        print(score, flush=True)
        keep(options.out, score, head)


if __name__ == "__main__":
    main()
