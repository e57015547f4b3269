"""How workflows are run: in Temporal's sandbox, with our vocabulary passed through, and without detours.

For each payload of each task, and several times over, the SDK enters a run's sandbox to ask for a context
that tells converters and storage which run it is for. That costs more than all of our own code. Where
nobody reads the context, it is not asked for.
"""

from dataclasses import dataclass, fields, replace
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


PURE: Final = (
    "perdure.activities",
    "perdure.agent",
    "perdure.blobs",
    "perdure.context",
    "perdure.effects",
    "perdure.errors",
    "perdure.fallbacks",
    "perdure.graph",
    "perdure.limits",
    "perdure.members",
    "perdure.messages",
    "perdure.model",
    "perdure.planning",
    "perdure.policy",
    "perdure.prices",
    "perdure.schema",
    "perdure.settings",
    "perdure.spec",
    "perdure.starter",
    "perdure.swarm",
    "perdure.texts",
    "perdure.tools",
    "perdure.tree",
    "perdure.versions",
    "perdure.wire",
    "perdure.wiring",
    "perdure.workers",
    "perdure.workflows.account",
    "perdure.workflows.amounts",
    "perdure.workflows.budget",
    "perdure.workflows.calls",
    "perdure.workflows.carry",
    "perdure.workflows.chain",
    "perdure.workflows.children",
    "perdure.workflows.decide",
    "perdure.workflows.fold",
    "perdure.workflows.graph",
    "perdure.workflows.joins",
    "perdure.workflows.pages",
    "perdure.workflows.plan",
    "perdure.workflows.remote",
    "perdure.workflows.report",
    "perdure.workflows.state",
    "perdure.workflows.swarm",
    "perdure.workflows.team",
    "perdure.workflows.tree",
    "perdure.workflows.turns",
    "perdure.workflows.window",
)
"""What may pass the sandbox without a thought: the vocabulary, the other rooms, and of the workflows' files
those that only decide. They may import no clock, chance or Temporal (import-linter holds that)."""

SHELLS: Final = (
    "perdure.workflows.agent",
    "perdure.workflows.alarm",
    "perdure.workflows.child",
    "perdure.workflows.display",
    "perdure.workflows.flights",
    "perdure.workflows.inputs",
    "perdure.workflows.outcome",
    "perdure.workflows.resolve",
    "perdure.workflows.runs",
    "perdure.workflows.session",
)
"""The files that carry decisions out. Importing these anew for each run was most of what it cost to begin one
(15 ms, 40 ms where no bytecode is kept) and to keep one in memory. So they pass too, and the sandbox looks at
them where it can do something about it: in our tests, by `strict_sandbox`. What users bring into a run, the
functions of a graph, is bound by `workflows/code.py`, which never passes.

All by name: "perdure.workflows" would pass that one too."""


def shared_runner(existing: WorkflowRunner | None, *, strict: bool = False) -> WorkflowRunner:
    """The runner, its sandbox sharing our files between all runs; with `strict`, only those that are pure."""
    runner = existing or SandboxedWorkflowRunner()
    if not isinstance(runner, SandboxedWorkflowRunner):
        return runner
    shared = PURE if strict else (*PURE, *SHELLS)
    return replace(runner, restrictions=runner.restrictions.with_passthrough_modules(*shared))


def without_detours(runner: WorkflowRunner | None, converter: DataConverter) -> WorkflowRunner:
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
