"""Evidence in Temporal's history of a run: its length, its size, and its completed work."""

from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHistoryEventFilterType

from .kit import Job, result

_CLOSE = WorkflowHistoryEventFilterType.CLOSE_EVENT


@dataclass
class Evidence:
    """A run, over all the parts it continued as new in."""

    events: int = 0
    bytes: int = 0
    parts: int = 0
    models: int = 0
    """Model activities that completed."""
    results: int = 0
    """Different tool results that activities returned in full."""
    step_times: list[float] = field(default_factory=list[float])
    """Seconds from one model call's scheduling to the next one's, within a part."""
    began: float = 0.0
    first_model: float = 0.0
    """Time when a worker started the first model call, in seconds since 1970, like `began`."""
    trouble: str = ""
    """Last failure of a workflow task."""


async def parts(client: Client, workflow_id: str) -> AsyncIterator[str]:
    """Yield the run ids of a workflow, in order of its parts."""
    described = await client.get_workflow_handle(workflow_id).describe()
    run_id = described.raw_description.workflow_execution_info.first_run_id or described.run_id
    while run_id:
        yield run_id
        handle = client.get_workflow_handle(workflow_id, run_id=run_id)
        described = await handle.describe()
        if described.status != WorkflowExecutionStatus.CONTINUED_AS_NEW:
            return
        [last] = [event async for event in handle.fetch_history_events(event_filter_type=_CLOSE)]
        run_id = last.workflow_execution_continued_as_new_event_attributes.new_execution_run_id


async def read(client: Client, workflow_id: str, job: Job, *, model: str, tool: str) -> Evidence:
    """Read the complete history of a run of the job."""
    found = Evidence()
    wanted = {
        result(step, call, job.size).encode()
        for step in range(1, job.steps + 1)
        for call in range(1, job.calls + 1)
    }
    async for run_id in parts(client, workflow_id):
        handle = client.get_workflow_handle(workflow_id, run_id=run_id)
        info = (await handle.describe()).raw_description.workflow_execution_info
        found.parts += 1
        found.events += info.history_length
        found.bytes += info.history_size_bytes
        part = _Part(found, wanted, model, tool)
        async for event in handle.fetch_history_events():
            part.take(event)
    return found


class _Part:
    def __init__(self, found: Evidence, wanted: set[bytes], model: str, tool: str) -> None:
        self.found = found
        self.wanted = wanted
        self.model = model
        self.tool = tool
        self.kinds: dict[int, str] = {}
        self.asked: float | None = None

    def take(self, event: HistoryEvent) -> None:
        match event.event_type:
            case EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED if not self.found.began:
                self.found.began = _seconds(event)
            case EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED:
                kind = event.activity_task_scheduled_event_attributes.activity_type.name
                self.kinds[event.event_id] = kind
                if kind == self.model:
                    self._model_asked(_seconds(event))
            case EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED if not self.found.first_model:
                of = event.activity_task_started_event_attributes.scheduled_event_id
                if self.kinds.get(of) == self.model:
                    self.found.first_model = _seconds(event)
            case EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED:
                self._count_completed(event)
            case EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED:
                self.found.trouble = event.workflow_task_failed_event_attributes.failure.message
            case _:
                pass

    def _model_asked(self, at: float) -> None:
        if self.asked is not None:
            self.found.step_times.append(at - self.asked)
        self.asked = at

    def _count_completed(self, event: HistoryEvent) -> None:
        done = event.activity_task_completed_event_attributes
        kind = self.kinds[done.scheduled_event_id]
        if kind == self.model:
            self.found.models += 1
        elif not self.tool or kind == self.tool:
            for payload in done.result.payloads:
                found = next((text for text in _candidates(payload.data) if text in self.wanted), None)
                if found is not None:
                    self.wanted.discard(found)  # a result that is returned twice counts once
                    self.found.results += 1


def _candidates(data: bytes) -> list[bytes]:
    """Return the texts in a payload that may be a tool's result: from "step " to the closing quote."""
    begin = data.find(b"step ")
    if begin < 0:
        return []
    return [data[begin:].split(b'"', 1)[0].rstrip(b"\\")]


def _seconds(event: HistoryEvent) -> float:
    return event.event_time.ToDatetime(tzinfo=UTC).timestamp()
