"""Programs bound to the user's code that their specs name."""

from typing import Any

from temporalio import workflow

from perdure.graph import GraphCode
from perdure.scheduling import Scheduler
from perdure.wire.spec import AnySpec, GraphSpec, PatternSpec

from .engine.program import Program
from .engine.programs import UserCode, program_for


def bound_program(spec: AnySpec) -> Program[Any]:
    """Return the program of a spec, with the user's code that it names."""
    return program_for(spec, UserCode(functions=_functions_of, scheduler=_scheduler_of))


def _functions_of(spec: GraphSpec) -> GraphCode:
    code: GraphCode = _user_code().functions_of(spec)
    return code


def _scheduler_of(spec: PatternSpec) -> Scheduler[Any]:
    scheduler: Scheduler[Any] = _user_code().scheduler_of(spec)
    return scheduler


def _user_code() -> Any:
    """Return the module that binds users' code. It is imported here: of our files it alone is each run's own."""
    with workflow.unsafe.sandbox_import_notification_policy(workflow.SandboxImportNotificationPolicy.SILENT):
        from . import user_code

    return user_code
