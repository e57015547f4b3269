"""`python -m perdure.workers FILE...`: a worker process that serves the agents of the files."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass

from perdure.settings import load_settings

from .worker import WorkerArgs, run_process, run_worker, stop_with_parent


@dataclass(frozen=True, kw_only=True)
class _Given:
    """The command line, read."""

    files: list[str]
    address: str | None
    namespace: str | None
    task_queue: str | None
    deployment: str | None
    build: str | None
    health: str | None
    ready_fd: int | None
    tied_to: int | None


def _read(arguments: Sequence[str] | None) -> _Given:
    parser = argparse.ArgumentParser(
        "perdure worker",
        description="Serve the agents of the files until told to stop. Settings: docs/settings.md.",
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="path/to/file.py, or package.module")
    parser.add_argument("--address", help="Temporal server, host:port")
    parser.add_argument("--namespace", help="Temporal namespace")
    parser.add_argument("--task-queue", help="task queue to take work from")
    parser.add_argument("--deployment", help="worker deployment this worker belongs to")
    parser.add_argument("--build", help="version of this worker within its deployment")
    parser.add_argument("--health", metavar="HOST:PORT", help="answer /live and /ready there")
    parser.add_argument("--ready-fd", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--tied-to", type=int, help=argparse.SUPPRESS)
    return _Given(**vars(parser.parse_args(arguments)))


async def _work(given: _Given) -> None:
    settings = load_settings(
        address=given.address,
        namespace=given.namespace,
        task_queue=given.task_queue,
        deployment_name=given.deployment,
        build_id=given.build,
        health_address=given.health,
    )
    if given.ready_fd is not None:  # under `perdure dev`: a version would get no work before it is promoted
        settings = settings.model_copy(update={"deployment_name": None, "build_id": None})
    await run_worker(WorkerArgs(files=given.files, settings=settings, ready_fd=given.ready_fd))


def main(arguments: Sequence[str] | None = None) -> None:
    """Work, and leave the process."""
    given = _read(arguments)
    if given.tied_to is not None:
        stop_with_parent(given.tied_to)
    run_process(lambda: _work(given))


if __name__ == "__main__":
    main()
