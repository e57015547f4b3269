"""Command `perdure worker`, as `python -m perdure.workers FILE...`."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.settings import load_settings

from .worker import WorkerArgs, run_process, run_worker, stop_with_parent


@dataclass(frozen=True, kw_only=True)
class _Arguments:
    """Values of the command line."""

    files: list[str]
    address: str | None
    namespace: str | None
    task_queue: str | None
    deployment: str | None
    build: str | None
    health: str | None
    ready_fd: int | None
    tied_to: int | None


def _parse(arguments: Sequence[str] | None) -> _Arguments:
    parser = argparse.ArgumentParser(
        "perdure worker",
        description="Serve the agents of the files until a signal stops it. Settings: docs/settings.md.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="path/to/file.py, or package.module")
    parser.add_argument("--address", help="Temporal server, host:port")
    parser.add_argument("--namespace", help="Temporal namespace")
    parser.add_argument("--task-queue", help="task queue to poll")
    parser.add_argument("--deployment", help="worker deployment this worker belongs to")
    parser.add_argument("--build", help="version of this worker within its deployment")
    parser.add_argument("--health", metavar="HOST:PORT", help="serve /live and /ready there")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tied-to", type=int, help=argparse.SUPPRESS)
    return _Arguments(**vars(parser.parse_args(arguments)))


async def _run(args: _Arguments) -> None:
    settings = load_settings(
        address=args.address,
        namespace=args.namespace,
        task_queue=args.task_queue,
        deployment_name=args.deployment,
        build_id=args.build,
        health_address=args.health,
    )
    if args.ready_fd is not None:  # under `perdure dev`, where nobody promotes a version to get runs
        settings = settings.model_copy(update={"deployment_name": None, "build_id": None})
    await run_worker(WorkerArgs(files=args.files, settings=settings, ready_fd=args.ready_fd))


def main(arguments: Sequence[str] | None = None) -> None:
    """Serve the agents, and end the process."""
    args = _parse(arguments)
    if args.tied_to is not None:
        stop_with_parent(args.tied_to)
    run_process(lambda: _run(args))


if __name__ == "__main__":
    main()
