"""Command `perdure blobs gc`: says which blobs nothing names any more, and deletes them if it is told to."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import timedelta

from temporalio.service import RPCError

from perdure.errors import DefinitionError
from perdure.settings import load_settings

from ..collector import Collection, Collector
from ..connection import configured_store, connect_temporal
from ..worker import exit_now, print_stderr, run_process


async def _collect(args: argparse.Namespace) -> None:
    namespaces = [args.namespace, *(args.also or ())]
    settings = [load_settings(address=args.address, namespace=namespace) for namespace in namespaces]
    store = configured_store(settings[0])
    clients = [await connect_temporal(each, blobs=store) for each in settings]
    grace = timedelta(days=args.grace_days)
    collector = Collector(clients, store, grace=grace, ignored_types=args.ignore_type or ())
    try:
        report = await collector.collect(delete=args.delete)
    except RPCError as error:
        raise DefinitionError(f"nothing was deleted: the server refused: {error.message}") from None
    if args.json:
        sys.stdout.write(json.dumps(asdict(report)) + "\n")
    else:
        sys.stdout.write(describe(report, settings[0].blob_store, grace, delete=args.delete) + "\n")
    if report.unreadable:
        if not args.json:
            print_stderr(
                "nothing was deleted: payloads that cannot be read may name any blob. Set PERDURE_PAYLOAD_CODEC to the "
                "codec that wrote them, or name workflow types that never use this store: --ignore-type"
            )
        exit_now(1)


def describe(report: Collection, store: str, grace: timedelta, *, delete: bool) -> str:
    """Return the report in lines, for people."""
    size = f"{report.garbage_bytes / 1_000_000:.1f} MB"
    lines = [
        f"{store}: {report.stored} blobs; {report.runs} runs and {report.schedules} schedules name {report.named}",
        f"{report.young} that nothing names are younger than {grace.days} days, and stay",
        f"{report.garbage} that nothing names are older: {size}",
        *(f"damaged: {line}" for line in report.damaged),
        *(f"unreadable: {line}" for line in report.unreadable),
    ]
    if delete and not report.unreadable:
        lines.append(f"{report.deleted} deleted")
    elif report.garbage and not report.unreadable:
        lines.append("nothing was deleted: this was a dry run; `perdure blobs gc --delete` deletes them")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Collect, and end the process: with 1 if a payload cannot be read."""
    parser = argparse.ArgumentParser("perdure blobs gc")
    parser.add_argument("--address")
    parser.add_argument("--namespace")
    parser.add_argument("--also", action="append")
    parser.add_argument("--grace-days", type=int, default=7)
    parser.add_argument("--ignore-type", action="append")
    parser.add_argument("--delete", action="store_true")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    run_process(lambda: _collect(args))


if __name__ == "__main__":
    main()
