"""How values look to people: text without control characters, amounts, tables. Prints nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from ..display import age, clean, cost, duration, plural, short
from .options import hint

if TYPE_CHECKING:
    from perdure.messages import Message, Part
    from perdure.wire.results import Failure, NodeStatus, PlanItem, RunResult, RunStatus, Waiting

    from ..client.connect import RunInfo
    from ..client.steps import Step

COLOURS: Final[Mapping[str, str]] = {
    "waiting_approval": "yellow",
    "waiting_person": "yellow",
    "paused": "yellow",
    "parked": "red",
    "failed": "red",
    "terminated": "red",
    "timed_out": "red",
    "completed": "green",
    "cancelled": "magenta",
    "done": "green",
    "skipped": "yellow",
}


def call(tool: str, arguments: Mapping[str, Any], most: int | None = None) -> str:
    """`search(query="...")`."""
    given = ", ".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in arguments.items())
    whole = clean(f"{tool}({given})")
    return whole if most is None else short(whole, most)


def output(value: Any) -> str:
    """A run's output: text as it is, the rest as JSON."""
    return clean(value) if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def summary(result: "RunResult") -> str:
    """How a run ended, in one line."""
    parts = [
        result.stop_reason,
        plural(result.steps, "step"),
        plural(result.tool_calls, "tool call"),
        plural(result.usage.total_tokens, "token"),
        cost(result.cost_microusd),
    ]
    return " · ".join(parts)


def failure(why: "Failure | None") -> str:
    """Why a run is parked or failed, in one line."""
    if why is None:
        return "unknown"
    where = f" at step {why.step} ({why.model})" if why.model else ""
    again = f"; tries again at {why.resumes_at:%H:%M:%S} UTC" if why.resumes_at else ""
    return f"{why.kind}{where}: {short(why.message, 500)}{again}"


def wanted(want: "Waiting") -> str:
    """What a run wants of a person, whole; of a run below, with the way to it."""
    where = f"{clean(' / '.join(want.path))}: " if want.path else ""
    match want.kind:
        case "approval":
            return where + call(want.tool, want.arguments)
        case "question":
            return where + clean(want.text)
        case "parked":
            return f"{where}parked: {failure(want.failure)}"


def how_to_answer(run_id: str, want: "Waiting") -> str:
    """The command that answers it: said to the run that waits, whichever of the tree it is."""
    waits = want.run_id or run_id
    match want.kind:
        case "approval":
            held = f"{waits} {want.call_id}"
            return f"{hint(f'approve {held}')}    (or: {hint(f'deny {held}')})"
        case "question":
            return hint(f'send {waits} "..."')
        case "parked":
            return how_to_go_on(waits, want.failure)


def how_to_go_on(run_id: str, why: "Failure | None" = None) -> str:
    """The commands for a parked run; there may be nothing to do but wait."""
    if why is not None and why.resumes_at is not None:
        soon = f"by itself at {why.resumes_at:%H:%M:%S} UTC"
        return f"{soon}; sooner with {hint(f'resume {run_id}')}    (or: {hint(f'stop {run_id}')})"
    return f"mend the cause, then: {hint(f'resume {run_id}')}    (or: {hint(f'stop {run_id}')})"


def status_word(status: str, parked_for: str | None = None) -> Text:
    """The status, in its colour; of a parked run with the kind of error that it is parked for."""
    why = f" ({parked_for})" if status == "parked" and parked_for else ""
    return Text(f"{status}{why}", style=COLOURS.get(status, "cyan"))


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """An empty table that reads well without colours too."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        made.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return made


def runs(infos: "Sequence[RunInfo]") -> Table:
    """Runs, one a line."""
    made = new_table(
        "ID", "AGENT", "STATUS", "STOP", "STEPS", "COST", "USER", "STARTED", right=("STEPS", "COST")
    )
    for info in infos:
        spent = "" if info.cost_usd is None else f"${info.cost_usd:.4f}"
        made.add_row(
            Text(info.id),
            Text(info.agent or ""),
            status_word(info.status, info.parked_for),
            info.stop_reason or "",
            str(info.steps),
            spent,
            Text(info.user or ""),
            age(info.started_at),
        )
    return made


def steps(of_run: "Sequence[Step]") -> Table:
    """Steps, one a line, their tool calls below each other."""
    made = new_table(
        "STEP", "MODEL", "TOOK", "TOKENS", "COST", "DID", right=("STEP", "TOOK", "TOKENS", "COST")
    )
    for step in of_run:
        made.add_row(
            str(step.step),
            Text(step.model),
            duration(step.duration_ms),
            f"{step.usage.total_tokens:,}",
            "?" if step.cost_microusd is None else cost(step.cost_microusd),
            _did(step),
        )
    return made


def _did(step: "Step") -> Text:
    lines = [short(step.text, 70)] if step.text.strip() else []
    for made in step.tool_calls:
        mark = "✗" if made.is_error else "✓" if made.finished else "…"
        time = f" {duration(made.duration_ms)}" if made.duration_ms else ""
        other = f" (answered by {made.stand_in})" if made.stand_in else ""
        lines.append(f"{mark} {call(made.tool, made.arguments, 70)}{time}{other}")
    if step.attempts > 1:
        lines.append(f"(attempt {step.attempts})")
    return Text("\n".join([*lines, *(f"! {short(error, 90)}" for error in step.errors)]))


def report(run_id: str, status: "RunStatus") -> list[tuple[str, str]]:
    """A run's status as names and values."""
    so_far = (
        f"{plural(status.step, 'step')}, {plural(status.tool_calls, 'tool call')}, "
        f"{plural(status.usage.total_tokens, 'token')}, {cost(status.cost_microusd)}"
    )
    rows = [
        ("run", run_id),
        ("agent", f"{status.agent} ({status.model or status.kind}, spec {status.spec_hash[:12]})"),
        ("status", status.status + (f" ({status.stop_reason})" if status.stop_reason else "")),
        ("doing", short(status.doing, 300)),
        ("so far", so_far),
    ]
    if status.queued:
        rows.append(("unread", plural(status.queued, "message")))
    if status.failure is not None:
        rows.append(("why", failure(status.failure)))
    if status.status == "parked":
        rows.append(("go on", how_to_go_on(run_id, status.failure)))
    for want in status.waiting:
        rows += [("waits for", wanted(want)), ("", how_to_answer(run_id, want))]
    rows += [("plan" if number == 0 else "", line) for number, line in enumerate(plan(status.plan))]
    if status.shared_context:
        told = json.dumps(status.shared_context, ensure_ascii=False)
        rows.append(("shared", short(told, 1000)))
    return rows


_MARKS: Final[dict[str, str]] = {"pending": "☐", "in_progress": "▸", "done": "☑", "dropped": "✗"}


def plan(items: "Sequence[PlanItem]") -> list[str]:
    """A plan, a line an item."""
    return [f"{_MARKS[item.state]} {clean(item.text)}" for item in items]


def nodes(of_run: "Sequence[NodeStatus]") -> Table:
    """What a run has started, one a line."""
    made = new_table("RUN BELOW", "STATE", "STOP", "STEPS", "COST", "ID", right=("STEPS", "COST"))
    for node in of_run:
        over = node.state != "running"
        made.add_row(
            Text(node.key),
            status_word(node.state),
            node.stop_reason or "",
            str(node.steps) if over and node.run_id else "",
            cost(node.cost_microusd) if over and node.run_id else "",
            Text(node.run_id or "(a function)"),
        )
    return made


def message(said: "Message") -> list[tuple[str, str]]:
    """A message as headings and texts, part by part."""
    return [_part(part, said.role) for part in said.parts]


def _part(part: "Part", role: str) -> tuple[str, str]:
    match part.kind:
        case "text":
            return role, clean(part.text)
        case "thinking":
            return f"{role} · thinking", clean(part.text or "(hidden by the provider)")
        case "tool_call":
            return f"{role} · calls {part.id}", call(part.name, part.arguments)
        case "tool_result":
            verdict = "error" if part.is_error else "result"
            return f"{part.name} · {verdict} of {part.call_id}", clean(part.text)
        case "image" | "document":
            return role, f"({part.media_type})"
        case "opaque":
            return role, f"({part.provider}'s own)"
