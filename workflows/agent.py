"""AgentWorkflow: one run of an agent, a swarm or a graph. Handlers only; the loop is in `loop`."""

from typing import Any

from temporalio import workflow

from perdure.limits import Limits
from perdure.wire.names import WORKFLOW
from perdure.wire.results import RunResult
from perdure.wire.tree import ChildInput

from .ending import EndedBeforeBeginningError
from .engine.carry import format_of, spec_in
from .engine.family import deadline_of
from .engine.state import Origin
from .handlers import RunHandlers, bound_program
from .inputs import request_of


@workflow.defn(name=WORKFLOW)
class AgentWorkflow(RunHandlers):
    """Workflow of a run of an agent, a swarm or a graph."""

    @workflow.run
    async def run(self, request: Any, carried: Any = None, *chunks: Any) -> RunResult:
        """Run an agent, swarm or graph to its end.

        `request` is a RunRequest as JSON. The further arguments are ours: the ChildInput of a run that another
        started, or the state of a run that continued as new.
        """
        # A child's input and a carried state share the argument: a root's run has a single one in history.
        if carried is not None and "state" in carried:
            self._loop.restore(bound_program(spec_in(carried)), carried, chunks)
            return await self._loop.run(request)
        try:
            await self._begin(request, carried)
        except EndedBeforeBeginningError as end:
            return await self._end_early(end)
        return await self._loop.run(request)

    async def _begin(self, request: Any, child_json: Any) -> None:
        run_request = request_of(request, is_child=child_json is not None)
        self._agent = run_request.agent
        child = None if child_json is None else ChildInput.model_validate(child_json)
        # One clock: the time in which the run cannot begin counts too.
        began = workflow.now()
        deadline = deadline_of(run_request.limits or Limits(), began, child)
        resolved = await self._resolve(run_request, child, deadline)
        origin = Origin(id=workflow.info().workflow_id, members=resolved.members, child=child)
        program = bound_program(resolved.spec)
        state = program.initial(run_request, began, origin)
        self._loop.begin(program, state, format_of(resolved))
