"""Identity of a run's calls, as `perdure.wire.identity` has it, from its state and from Temporal."""

from temporalio import workflow

from perdure.messages import ToolCall
from perdure.model import digest
from perdure.scheduling import Start
from perdure.wire.identity import child_identity, idempotency_key, root_identity

from .engine.calls import call_digest
from .engine.state import RunState


def identity_of(state: RunState) -> str:
    """Return the identity of the run."""
    lineage = state.tree.lineage
    if lineage is not None and lineage.identity:
        return lineage.identity
    if state.past.identity:
        return state.past.identity
    info = workflow.info()
    return root_identity(info.namespace, info.workflow_id, info.first_execution_run_id)


def identity_below(state: RunState, start: Start) -> str:
    """Return the identity of a run that the run starts: the same for each attempt of a node."""
    return child_identity(identity_of(state), start.act)


def call_key(state: RunState, call: ToolCall) -> str:
    """Return the idempotency key of a tool call."""
    return idempotency_key(identity_of(state), call.id, call_digest(call))


def function_key(state: RunState, start: Start) -> str:
    """Return the idempotency key of a visit of a graph's function."""
    prompt = start.prompt
    task = prompt if isinstance(prompt, str) else [part.model_dump(mode="json") for part in prompt]
    return idempotency_key(identity_of(state), start.act, digest([task, start.inputs]))


def earlier_attempts(state: RunState) -> int:
    """Return the attempts before the first one that the run itself makes of its calls."""
    above = state.tree.lineage.earlier_attempts if state.tree.lineage else 0
    return above + resets(state)


def resets(state: RunState) -> int:
    """Return how often the run was reset: once at most since it last continued as new."""
    info = workflow.info()
    return state.resets + (info.run_id != info.original_execution_run_id)
