"""AgentWorkflow: one run of an agent, a swarm or a graph. Handlers only; the loop is in `loop`."""

from typing import Any

from temporalio import workflow

from perdure.limits import Limits
from perdure.wire.names import WORKFLOW
from perdure.wire.requests import RunRequest
from perdure.wire.results import RunResult
from perdure.wire.spec import AnySpec
from perdure.wire.tree import ChildInput

from .arguments import Carried, read_arguments
from .bound_programs import bound_program
from .ending import EndedBeforeBeginningError
from .engine.carry import format_of, spec_in
from .engine.clocks import deadline_of
from .engine.program import RunningProgram
from .engine.state import Origin
from .extension import ExtendableRun
from .inputs import is_extension, request_of
from .memory import remember


@workflow.defn(name=WORKFLOW)
class AgentWorkflow(ExtendableRun):
    """Workflow of a run of an agent, a swarm or a graph."""

    @workflow.run
    async def run(self, *arguments: Any) -> RunResult:
        """Run an agent, swarm or graph to its end.

        The first argument is a RunRequest as JSON. The others are ours: the ChildInput of a run that another
        started, or the state of a run that continued as new.
        """
        self._has_begun = True
        # A child's input and a carried state share the argument: a root's run has a single one in history.
        match read_arguments(arguments):
            case request, Carried() as carried:
                self._loop.restore(bound_program(spec_in(carried.state)), carried.state, carried.chunks)
                return await self._loop.run(request)
            case request, child:
                pass
        try:
            if child is None and is_extension(request):
                await self._go_on(request)
            elif not (child and child.extension and await self._go_on(child.extension, child)):
                await self._begin(request_of(request, is_child=child is not None), child)
        except EndedBeforeBeginningError as end:
            return await self._end_early(end)
        return await self._loop.run(request)

    def _bind(self, spec: AnySpec) -> RunningProgram[Any]:
        return bound_program(spec)

    async def _begin(self, request: RunRequest, child: ChildInput | None) -> None:
        self._agent = request.agent
        # One clock: the time in which the run cannot begin counts too.
        began = workflow.now()
        deadline = deadline_of(request.limits or Limits(), began, child)
        resolved = await self._resolve(request, child, deadline)
        if child is not None and child.remembers is not None:
            request, child = await self._race_to_begin(remember(request, child), child)
        origin = Origin(id=workflow.info().workflow_id, members=resolved.members, child=child)
        program = bound_program(resolved.spec)
        state = program.initial(request, began, origin)
        self._loop.begin(program, state, format_of(resolved))
