"""Values as text and tables for people. Prints nothing."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from rich.table import Table
from rich.text import Text

from perdure.shown import visible

from ..display import age, clean, cost, duration, format_call, plural, short
from .options import hint

if TYPE_CHECKING:
    from perdure.messages import ApprovalRecord, Message, Part
    from perdure.wire.results import Failure, NodeStatus, PlanItem, RunResult, RunStatus, Waiting

    from ..client.listing import RunInfo
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


def output(value: Any) -> str:
    """Return a run's output as text: a string as it is, anything else as JSON."""
    return clean(value) if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)


def result_line(result: "RunResult") -> str:
    """Return the end of a run in one line: stop reason, amounts and cost."""
    parts = [
        result.stop_reason,
        plural(result.steps, "step"),
        plural(result.tool_calls, "tool call"),
        plural(result.usage.total_tokens, "token"),
        cost(result.cost_microusd),
    ]
    return " · ".join(parts)


def failure_line(failure: "Failure | None") -> str:
    """Return in one line why a run is parked or has failed, and when it retries by itself."""
    if failure is None:
        return "unknown"
    where = f" at step {failure.step} ({failure.model})" if failure.model else ""
    again = f"; tries again at {failure.resumes_at:%H:%M:%S} UTC" if failure.resumes_at else ""
    return f"{failure.kind}{where}: {short(failure.message, 500)}{again}"


def waiting_item(item: "Waiting") -> str:
    """Return what a run wants of a person, uncut; of a run below, with the path to it.

    An approval is given for all of the arguments, so all of them are shown.
    """
    path = f"{visible(' / '.join(item.path))}: " if item.path else ""
    match item.kind:
        case "approval":
            why = f" (asked because: {visible(item.reason)})" if item.reason else ""
            return format_call(item.tool, item.arguments, item.path) + why
        case "question":
            return path + visible(item.text, lines=True)
        case "parked":
            return f"{path}parked: {failure_line(item.failure)}"


def answer_hint(run_id: str, item: "Waiting") -> str:
    """Return the command that answers the item; it names the run that waits, at whatever depth."""
    waits = item.run_id or run_id
    match item.kind:
        case "approval":
            call = f"{waits} {item.call_id}"
            return f"{hint(f'approve {call}')}    (or: {hint(f'deny {call}')})"
        case "question":
            return hint(f'send {waits} "..." --call {item.call_id}')
        case "parked":
            return resume_hint(waits, item.failure)


def resume_hint(run_id: str, failure: "Failure | None" = None) -> str:
    """Return the commands for a parked run; a run that retries by itself needs none of them."""
    if failure is not None and failure.resumes_at is not None:
        soon = f"by itself at {failure.resumes_at:%H:%M:%S} UTC"
        return f"{soon}; sooner with {hint(f'resume {run_id}')}    (or: {hint(f'stop {run_id}')})"
    return f"mend the cause, then: {hint(f'resume {run_id}')}    (or: {hint(f'stop {run_id}')})"


def unserved_hint(run_id: str) -> str:
    """Return the commands for a run whose agent no worker serves yet."""
    watch, stop = hint(f"watch {run_id}"), hint(f"stop {run_id}")
    return f"it begins once a worker serves the agent; follow it then: {watch}    (or end it: {stop})"


def status_text(status: str, parked_for: str | None = None) -> Text:
    """Return the status in its colour; of a parked run with the kind of error that parked it."""
    cause = f" ({parked_for})" if status == "parked" and parked_for else ""
    return Text(f"{status}{cause}", style=COLOURS.get(status, "cyan"))


def new_table(*columns: str, right: Sequence[str] = ()) -> Table:
    """Return an empty table that reads well without colours too."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in columns:
        # Folded, never cut: an id that lost its end cannot be copied.
        table.add_column(name, justify="right" if name in right else "left", overflow="fold")
    return table


def runs(infos: "Sequence[RunInfo]") -> Table:
    """Return a table of runs, one a line."""
    columns = ("ID", "AGENT", "STATUS", "STOP", "STEPS", "COST", "USER", "STARTED")
    table = new_table(*columns, right=("STEPS", "COST"))
    for info in infos:
        at_least = "+" if info.has_gone_on else ""
        steps = "?" if info.steps is None else f"{info.steps}{at_least}"
        spent = "" if info.cost_usd is None else f"${info.cost_usd:.4f}{at_least}"
        table.add_row(
            # As Text: ids, names and users may hold what looks like markup.
            Text(info.id),
            Text(info.agent or ""),
            status_text(info.status, info.parked_for),
            info.stop_reason or "",
            steps,
            spent,
            Text(info.user or ""),
            age(info.started_at),
        )
    return table


def unbegun_lines(infos: "Sequence[RunInfo]") -> list[Text]:
    """Return a line for each run that cannot begin yet, with the cause."""
    return [Text(f"! {info.id}: {short(info.cannot_begin, 500)}") for info in infos if info.cannot_begin]


def steps(rows: "Sequence[Step]") -> Table:
    """Return a table of steps, one a line, with the tool calls of each below each other."""
    columns = ("STEP", "MODEL", "TOOK", "TOKENS", "COST", "DID")
    table = new_table(*columns, right=("STEP", "TOOK", "TOKENS", "COST"))
    for step in rows:
        table.add_row(
            str(step.step),
            Text(step.model),
            duration(step.duration_ms),
            f"{step.usage.total_tokens:,}",
            "?" if step.cost_microusd is None else cost(step.cost_microusd),
            _step_actions(step),
        )
    return table


def _step_actions(step: "Step") -> Text:
    lines = [short(step.text, 70)] if step.text.strip() else []
    for call in step.tool_calls:
        mark = "✗" if call.is_error else "✓" if call.finished else "…"
        took = f" {duration(call.duration_ms)}" if call.duration_ms else ""
        stand_in = f" (answered by {call.stand_in})" if call.stand_in else ""
        lines.append(f"{mark} {short(format_call(call.tool, call.arguments), 70)}{took}{stand_in}")
        if call.approval is not None:
            lines.append(f"  {_decision_text(call.tool, call.approval)}")
    # Retries are rare and explain a slow step, so only they are mentioned.
    if step.attempts > 1:
        lines.append(f"(attempt {step.attempts})")
    return Text("\n".join([*lines, *(f"! {short(error, 90)}" for error in step.errors)]))


def _decision_text(tool: str, record: "ApprovalRecord") -> str:
    by = f" by {short(record.by, 40)}" if record.by else ""
    why = f": {short(record.reason, 60)}" if record.reason else ""
    used = f", as {short(format_call(tool, record.arguments), 70)}" if record.arguments is not None else ""
    return f"{'approved' if record.allow else 'denied'}{by}{why}{used}"


def status_rows(run_id: str, status: "RunStatus") -> list[tuple[str, str]]:
    """Return a run's status as names and values, with the commands that help it on."""
    amounts = (
        f"{plural(status.step, 'step')}, {plural(status.tool_calls, 'tool call')}, "
        f"{plural(status.usage.total_tokens, 'token')}, {cost(status.cost_microusd)}"
    )
    rows = [
        ("run", run_id),
        ("agent", _agent_words(status)),
        ("status", status.status + (f" ({status.stop_reason})" if status.stop_reason else "")),
        ("doing", short(status.doing, 300)),
        ("so far", amounts),
    ]
    rows += _version_rows(status)
    if status.queued:
        rows.append(("unread", plural(status.queued, "message")))
    if status.failure is not None:
        rows.append(("why", failure_line(status.failure)))
    if status.status == "parked":
        rows.append(("go on", resume_hint(run_id, status.failure)))
    for item in status.waiting:
        rows += [("waits for", waiting_item(item)), ("", answer_hint(run_id, item))]
    rows += [("plan" if number == 0 else "", line) for number, line in enumerate(plan_lines(status.plan))]
    # Handoffs may share whole documents: cut, or they would push everything else off the screen.
    if status.shared_context:
        shared = json.dumps(status.shared_context, ensure_ascii=False)
        rows.append(("shared", short(shared, 1000)))
    return rows


def _agent_words(status: "RunStatus") -> str:
    if not status.spec_hash:  # a run that has not begun
        return status.agent
    return f"{status.agent} ({status.model or status.kind}, spec {status.spec_hash[:12]})"


def _version_rows(status: "RunStatus") -> list[tuple[str, str]]:
    """Return who has extended the run, and who has changed the version of a session's agent."""
    rows: list[tuple[str, str]] = []
    for made in status.extensions:
        granted = ", ".join(f"{name}={value}" for name, value in made.limits.items())
        who = made.by or "a person"
        rows.append(("extended", short(f"{made.at:%Y-%m-%d %H:%M} UTC by {who}: {granted}", 300)))
    for upgrade in status.upgrades[-1:]:
        who = f" by {upgrade.by}" if upgrade.by else ""
        rows.append(("upgraded", short(f"{upgrade.at:%Y-%m-%d %H:%M} UTC{who} {upgrade.reason}", 300)))
    if status.next_spec_hash:
        rows.append(("next", f"spec {status.next_spec_hash[:12]}, after this turn"))
    return rows


_PLAN_MARKS: Final[dict[str, str]] = {"pending": "☐", "in_progress": "▸", "done": "☑", "dropped": "✗"}


def plan_lines(items: "Sequence[PlanItem]") -> list[str]:
    """Return a plan, one line an item."""
    return [f"{_PLAN_MARKS[item.state]} {clean(item.text)}" for item in items]


def nodes(rows: "Sequence[NodeStatus]") -> Table:
    """Return a table of the runs that a run has started, one a line."""
    table = new_table("RUN BELOW", "STATE", "STOP", "STEPS", "COST", "ID", right=("STEPS", "COST"))
    for node in rows:
        # Amounts of a running node are not known here yet; a function has none.
        has_amounts = node.state != "running" and node.run_id is not None
        table.add_row(
            Text(node.key),
            status_text(node.state),
            node.stop_reason or "",
            str(node.steps) if has_amounts else "",
            cost(node.cost_microusd) if has_amounts else "",
            Text(node.run_id or "(a function)"),
        )
    return table


def message_parts(message: "Message") -> list[tuple[str, str]]:
    """Return a message as headings and texts, one pair a part."""
    return [_message_part(part, message.role) for part in message.parts]


def _message_part(part: "Part", role: str) -> tuple[str, str]:
    match part.kind:
        case "text":
            return role, clean(part.text)
        case "thinking":
            # Some providers return only a signature of what was thought.
            return f"{role} · thinking", clean(part.text or "(hidden by the provider)")
        case "tool_call":
            return f"{role} · calls {part.id}", format_call(part.name, part.arguments)
        case "tool_result":
            verdict = "error" if part.is_error else "result"
            return f"{part.name} · {verdict} of {part.call_id}", clean(part.text)
        case "image" | "document":
            return role, f"({part.media_type})"
        case "opaque":
            return role, f"({part.provider}'s own)"
