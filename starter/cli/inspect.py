"""A long look at one run: status, steps, result; as much of it as can be had."""

from dataclasses import dataclass
from typing import Any

from rich.table import Table
from rich.text import Text

from perdure.errors import InvalidRequest, NotReachable, RunFailed
from perdure.wire.results import NodeStatus, RunResult, RunStatus

from .. import display
from ..client.run import Run
from ..client.steps import Step, steps_of
from ..watch.changes import nodes_in_result
from ..watch.children import ChildRuns
from . import tables


@dataclass(frozen=True, kw_only=True)
class Look:
    """What was seen. Without a worker there is only what the server knows."""

    id: str
    state: str
    """The workflow's state, as the server tells it."""
    status: RunStatus | None = None
    nodes: tuple[NodeStatus, ...] = ()
    """What it has started; more than the status says, where more can be known."""
    steps: tuple[Step, ...] = ()
    result: RunResult | None = None
    error: str | None = None
    problem: str | None = None
    """Why there is no more to be seen."""

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "id": self.id,
            "state": self.state,
            "status": self.status.model_dump(mode="json") if self.status else None,
            "nodes": [node.model_dump(mode="json") for node in self.nodes],
            "steps": [step.model_dump(mode="json") for step in self.steps],
            "result": self.result.model_dump(mode="json") if self.result else None,
            "error": self.error,
            "problem": self.problem,
        }

    def pretty(self) -> list[Any]:
        """For people."""
        rows = (
            tables.report(self.id, self.status) if self.status else [("run", self.id), ("state", self.state)]
        )
        if self.error and not (self.status and self.status.failure):
            rows.append(("error", display.short(self.error, 500)))
        for name, why in self.result.unmet.items() if self.result else ():
            rows.append(("never ran", f"{name}: {why}"))
        if self.problem:
            rows.append(("unknown", f"the rest: {self.problem}"))
        things: list[Any] = [_grid(rows)]
        if self.nodes:
            things += ["", tables.nodes(self.nodes)]
        if self.steps:
            things += ["", tables.steps(self.steps)]
        if self.result is not None and self.result.output not in (None, ""):
            things += ["", Text(tables.output(self.result.output))]
        return things


def _grid(rows: list[tuple[str, str]]) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        style = tables.COLOURS.get(value.split(" ")[0], "") if name in ("status", "state") else ""
        grid.add_row(name, Text(value, style=style))
    return grid


async def look_at(run: Run) -> Look:
    """Look at the run.

    Raises:
        RunNotFound: there is none.

    """
    described = await run.describe()
    state = described.status.name.lower() if described.status else "unknown"
    result, error = await _end(run) if state != "running" else (None, None)
    try:
        status, messages = await run.status(), await run.transcript()
        nodes = await ChildRuns(run).nodes(status, messages, described)
    except (NotReachable, InvalidRequest) as reason:
        # A run that never got its agent has no status and never will: its error says it all.
        problem = None if error else str(reason)
        return Look(id=run.id, state=state, result=result, error=error, problem=problem)
    known = nodes_in_result(result) if result and result.nodes else nodes
    return Look(
        id=run.id,
        state=state,
        status=status,
        nodes=tuple(known),
        steps=tuple(steps_of(messages)),
        result=result,
        error=error,
    )


async def _end(run: Run) -> tuple[RunResult | None, str | None]:
    try:
        return await run.result(), None
    except RunFailed as error:
        return error.result, f"{error.kind}: {error}"
