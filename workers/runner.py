"""How workflows are run: in Temporal's sandbox, with our vocabulary passed through, and without detours.

For each payload of each task, and several times over, the SDK enters a run's sandbox to ask for a context
that tells converters and storage which run it is for. That costs more than all of our own code. Where
nobody reads the context, it is not asked for.
"""

from dataclasses import dataclass, fields, replace
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, Final

from temporalio.converter import (
    DataConverter,
    ExternalStorage,
    SerializationContext,
    StorageDriverStoreContext,
    WorkflowSerializationContext,
)
from temporalio.worker import WorkflowInstance, WorkflowInstanceDetails, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from .converter import BlobDriver

_NOWHERE: Final = StorageDriverStoreContext(target=None)


_BINDS_USER_CODE: Final = "graph_code"
"""The only file that the sandbox imports anew for each run: what users bring into a run, the functions of a
graph, is bound there."""


def _modules(package: str, *left_out: str) -> tuple[str, ...]:
    folder = import_module(package).__path__
    return tuple(f"{package}.{module.name}" for module in iter_modules(folder) if module.name not in left_out)


PURE: Final = (*_modules("perdure", "workflows", "__main__", "testing"), "perdure.workflows.engine")
"""Modules that pass the sandbox unchecked: the vocabulary, the other rooms, and the engine. The engine
imports no clock, chance or Temporal (import-linter holds that)."""

SHELLS: Final = _modules("perdure.workflows", "engine", _BINDS_USER_CODE)
"""The files that carry decisions out. Importing these anew for each run was most of what it cost to begin one
(15 ms, 40 ms without bytecode) and to keep one in memory. So they pass too, and the sandbox checks them in
our tests, by `strict_sandbox`."""


def share_modules(existing: WorkflowRunner | None, *, strict: bool = False) -> WorkflowRunner:
    """The runner, its sandbox sharing our files between all runs; with `strict`, only those that are pure."""
    runner = existing or SandboxedWorkflowRunner()
    if not isinstance(runner, SandboxedWorkflowRunner):
        return runner
    shared = PURE if strict else (*PURE, *SHELLS)
    return replace(runner, restrictions=runner.restrictions.with_passthrough_modules(*shared))


def skip_unused_contexts(runner: WorkflowRunner | None, converter: DataConverter) -> WorkflowRunner:
    """The runner; a faster one, if it is Temporal's own sandbox and nobody reads the contexts."""
    runner = runner or SandboxedWorkflowRunner()
    if type(runner) is not SandboxedWorkflowRunner or _reads_contexts(converter):
        return runner
    taken = {one.name: getattr(runner, one.name) for one in fields(runner) if one.init}
    return _Direct(**taken)


def _reads_contexts(converter: DataConverter) -> bool:
    somewhere = WorkflowSerializationContext(namespace="any", workflow_id="any")
    return converter.with_context(somewhere) is not converter or not _ours(converter.external_storage)


def _ours(storage: ExternalStorage | None) -> bool:
    return storage is None or (
        storage.driver_selector is None and all(type(driver) is BlobDriver for driver in storage.drivers)
    )


@dataclass(frozen=True)
class _Direct(SandboxedWorkflowRunner):
    """Temporal's sandbox, which for contexts is not entered."""

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _DirectInstance(super().create_instance(det))


class _DirectInstance(WorkflowInstance):
    def __init__(self, sandboxed: WorkflowInstance) -> None:
        self._sandboxed = sandboxed

    def activate(self, act: Any) -> Any:
        return self._sandboxed.activate(act)

    def get_serialization_context(self, command_info: Any) -> SerializationContext | None:
        return None

    def get_external_store_context(self, command_info: Any) -> StorageDriverStoreContext:
        return _NOWHERE

    def get_info(self) -> Any:
        return self._sandboxed.get_info()

    def get_thread_id(self) -> int | None:
        return self._sandboxed.get_thread_id()
