"""Workflow runner: Temporal's sandbox, with our modules passed through and unused context lookups skipped.

The sandbox imports every module anew for each run. Modules that cannot break determinism pass through
instead: all runs of a process share one copy of them.

For each payload of each workflow task the SDK enters the run's sandbox, up to four times, to ask for a
serialization context: the run that a converter or a storage driver works for. These lookups cost more than
all of our own code, so they are skipped where nothing reads the context.
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

from .converter import BlobDriver, InlineSelector

_NO_TARGET: Final = StorageDriverStoreContext(target=None)

_BINDS_USER_CODE: Final = "user_code"
"""The only file that the sandbox imports anew for each run: it binds functions and schedulers of users."""


def _modules(package: str, *excluded: str) -> tuple[str, ...]:
    """Return the modules and folders of a package but the excluded.

    They are read from the disk, so that a new file needs no entry in a list. A wheel and a checkout give
    the same names: the rooms are folders of the package in a wheel, and links in the package in a checkout.
    """
    paths = import_module(package).__path__
    return tuple(f"{package}.{module.name}" for module in iter_modules(paths) if module.name not in excluded)


PURE: Final = (*_modules("perdure", "workflows", "__main__", "testing"), "perdure.workflows.engine")
"""Modules that always pass the sandbox: the vocabulary, the other rooms, and the engine.

The engine imports no clock, chance or Temporal; import-linter enforces that.
"""

WORKFLOWS: Final = _modules("perdure.workflows", "engine", _BINDS_USER_CODE)
"""Modules that carry out the engine's commands. They pass the sandbox except with `strict_sandbox`.

Importing them anew took most of the time to begin a run (15 ms, 40 ms without bytecode), and most of the
memory of a cached one. Our tests run with `strict_sandbox`, so the sandbox still checks these files.
"""


def share_modules(existing: WorkflowRunner | None, *, strict: bool = False) -> WorkflowRunner:
    """Return the runner with our modules passed through its sandbox; `strict` passes only the pure ones."""
    runner = existing or SandboxedWorkflowRunner()
    if not isinstance(runner, SandboxedWorkflowRunner):
        return runner
    shared = PURE if strict else (*PURE, *WORKFLOWS)
    return replace(runner, restrictions=runner.restrictions.with_passthrough_modules(*shared))


def skip_unused_contexts(runner: WorkflowRunner | None, converter: DataConverter) -> WorkflowRunner:
    """Return a runner that skips context lookups, if nothing reads contexts; else the runner itself."""
    runner = runner or SandboxedWorkflowRunner()
    # A subclass may override what we would skip, so only Temporal's own class is replaced.
    if type(runner) is not SandboxedWorkflowRunner or _reads_contexts(converter):
        return runner
    settings = {field.name: getattr(runner, field.name) for field in fields(runner) if field.init}
    return _ContextFreeRunner(**settings)


def _reads_contexts(converter: DataConverter) -> bool:
    # A converter returns itself from `with_context` when none of its parts takes a context.
    context = WorkflowSerializationContext(namespace="any", workflow_id="any")
    return converter.with_context(context) is not converter or not _is_ours(converter.external_storage)


def _is_ours(storage: ExternalStorage | None) -> bool:
    # Our driver names blobs by content alone. A user's driver or selector may use the run's id.
    return storage is None or (
        isinstance(storage.driver_selector, InlineSelector | None)
        and all(type(driver) is BlobDriver for driver in storage.drivers)
    )


@dataclass(frozen=True)
class _ContextFreeRunner(SandboxedWorkflowRunner):
    """Temporal's sandbox, not entered for contexts."""

    def create_instance(self, det: WorkflowInstanceDetails) -> WorkflowInstance:
        return _ContextFreeInstance(super().create_instance(det))


class _ContextFreeInstance(WorkflowInstance):
    """A sandboxed run that answers context lookups outside its sandbox."""

    def __init__(self, sandboxed: WorkflowInstance) -> None:
        self._sandboxed = sandboxed

    def activate(self, act: Any) -> Any:
        return self._sandboxed.activate(act)

    def get_serialization_context(self, command_info: Any) -> SerializationContext | None:
        return None

    def get_external_store_context(self, command_info: Any) -> StorageDriverStoreContext:
        return _NO_TARGET

    def get_info(self) -> Any:
        return self._sandboxed.get_info()

    def get_thread_id(self) -> int | None:
        return self._sandboxed.get_thread_id()
