"""Spans of a small run on a real server, replayed at every task, and metrics as they are scraped."""

import asyncio
import json
import random
import socket
import sys
from collections.abc import AsyncGenerator, Generator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.contrib.opentelemetry import ReplaySafeTracerProvider, create_tracer_provider
from temporalio.exceptions import ApplicationError
from temporalio.plugin import SimplePlugin
from temporalio.worker import Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

from perdure.activities.telemetry import model_span, tool_span
from perdure.errors import ModelError
from perdure.messages import Message, ReplyMeta, Text, ToolResult, Usage
from perdure.model import ModelConfig, ModelRequest
from perdure.settings import load_settings
from perdure.wire.effects import ModelInput, ModelOutcome, ToolInput, TranscriptView
from perdure.workers.dev.server import DevServer
from perdure.workers.observe.telemetry import interceptors
from perdure.workers.runner import PURE

CONFIG = ModelConfig(name="bedrock:claude")
LOGGED: list[dict[str, Any]] = []


def _want(step: int) -> ModelInput:
    return ModelInput(agent="support", spec="", step=step, view=TranscriptView(length=1), max_tokens=100)


def _outcome(step: int) -> ModelOutcome:
    usage = Usage(input_tokens=10, cache_read_tokens=5, output_tokens=7)
    meta = ReplyMeta(step=step, model="bedrock:claude-1", usage=usage, cost_microusd=1500, request_id="req-1")
    message = Message(role="assistant", parts=[Text(text="the answer is private")], meta=meta)
    return ModelOutcome(message=message, stop="end_turn")


@activity.defn
async def think(step: int) -> None:
    request = ModelRequest(
        config=CONFIG, instructions="be kind", messages=(Message(role="user", parts=[Text(text="hello")]),)
    )
    with model_span(CONFIG, _want(step), request) as span:
        LOGGED.append(structlog.contextvars.get_contextvars())
        if step == 1 and activity.info().attempt == 1:
            raise ModelError("overloaded", "said something private")
        span.record(_outcome(step))


@activity.defn
async def act(call_id: str) -> None:
    want = ToolInput(
        agent="support", tool="search", call_id=call_id, arguments={"q": "x"}, idempotency_key="k"
    )
    with tool_span(want) as span:
        LOGGED.append(structlog.contextvars.get_contextvars())
        result = ToolResult(call_id=call_id, name="search", content=[Text(text="found")], is_error=True)
        span.record(result)


@workflow.defn(name="AgentWorkflow")
class SmallRun:
    @workflow.run
    async def run(self, request: dict[str, Any]) -> dict[str, Any]:
        for step in (1, 2):
            await workflow.execute_activity(
                think,
                step,
                start_to_close_timeout=timedelta(seconds=10),
                retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=1), maximum_attempts=2),
            )
            await workflow.execute_activity(
                act, f"call-{step}-1", start_to_close_timeout=timedelta(seconds=10)
            )
        await workflow.sleep(0.05)
        if request.get("fails"):
            raise ApplicationError("private words", type="UnknownAgent")
        return {"stop_reason": "end_turn", "steps": 2, "cost_microusd": 3000}


@pytest.fixture(scope="module")
def exporter() -> InMemorySpanExporter:
    provider = trace.get_tracer_provider()
    if not isinstance(provider, ReplaySafeTracerProvider):
        provider = create_tracer_provider()
        trace.set_tracer_provider(provider)  # once a process: other tests' spans go there too
    memory = InMemorySpanExporter()
    provider.add_span_processor(SimpleSpanProcessor(memory))
    return memory


@pytest.fixture
def spans(exporter: InMemorySpanExporter) -> Generator[InMemorySpanExporter]:
    LOGGED.clear()
    exporter.clear()
    yield exporter
    exporter.clear()


@pytest_asyncio.fixture(scope="module", loop_scope="module", name="address")
async def _address() -> AsyncGenerator[str]:
    async with DevServer.start(ui_port=False) as server:
        yield server.address


async def _run(address: str, request: dict[str, Any], *, capture_content: bool = False) -> tuple[str, Any]:
    settings = load_settings(capture_content=capture_content)
    restrictions = SandboxRestrictions.default.with_passthrough_modules(*PURE, __name__)
    plugin = SimplePlugin("telemetry", interceptors=interceptors(settings))
    client = await Client.connect(address, plugins=[plugin])
    run_id = f"run-{len(request)}-{capture_content}"
    async with Worker(
        client,
        task_queue="telemetry",
        workflows=[SmallRun],
        activities=[think, act],
        max_cached_workflows=0,
        workflow_runner=replace(SandboxedWorkflowRunner(), restrictions=restrictions),
    ):
        with trace.get_tracer("test").start_as_current_span("caller"):
            try:
                return run_id, await client.execute_workflow(
                    SmallRun.run, request, id=run_id, task_queue="telemetry"
                )
            except WorkflowFailureError as error:
                return run_id, error


def _named(spans: InMemorySpanExporter) -> list[str]:
    return sorted(span.name for span in spans.get_finished_spans())


def _attributes(span: ReadableSpan) -> dict[str, Any]:
    return dict(span.attributes or {})


async def test_replayed_run_has_each_span_once(address: str, spans: InMemorySpanExporter) -> None:
    run_id, _ = await _run(address, {"agent": "support"})
    assert _named(spans) == [
        "caller",
        "chat claude",
        "chat claude",
        "chat claude",  # the first attempt of step 1
        "execute_tool search",
        "execute_tool search",
        "invoke_agent support",
    ]
    by_name = {span.name: span for span in spans.get_finished_spans()}
    caller, run = by_name["caller"], by_name["invoke_agent support"]
    assert caller.context is not None
    assert run.context is not None
    assert run.parent is not None
    assert run.parent.span_id == caller.context.span_id
    for span in spans.get_finished_spans():
        assert span.context is not None
        assert span.context.trace_id == caller.context.trace_id
        if span.name.startswith(("chat", "execute_tool")):
            assert span.parent is not None
            assert span.parent.span_id == run.context.span_id
            assert _attributes(span)["gen_ai.conversation.id"] == run_id
    attributes = _attributes(run)
    assert attributes["perdure.stop_reason"] == "end_turn"
    assert run.start_time is not None
    assert run.end_time is not None
    assert run.end_time - run.start_time > 50_000_000, "nanoseconds: the run's real duration"


async def test_spans_follow_conventions_without_content(address: str, spans: InMemorySpanExporter) -> None:
    await _run(address, {"agent": "support", "a": 1})
    failed, answered, *_ = (s for s in spans.get_finished_spans() if s.name.startswith("chat"))
    assert _attributes(failed)["error.type"] == "overloaded"
    assert not failed.status.is_ok
    attributes = _attributes(answered)
    assert attributes["gen_ai.provider.name"] == "aws.bedrock"
    assert attributes["gen_ai.usage.input_tokens"] == 15
    assert attributes["gen_ai.usage.cache_read.input_tokens"] == 5
    assert attributes["gen_ai.response.finish_reasons"] == ("end_turn",)
    assert attributes["perdure.attempt"] == 2
    tool = next(s for s in spans.get_finished_spans() if s.name.startswith("execute_tool"))
    assert _attributes(tool)["gen_ai.tool.call.id"] == "call-1-1"
    assert _attributes(tool)["error.type"] == "tool_error"
    everything = "".join(span.to_json() for span in spans.get_finished_spans())
    for private in ("private", "hello", "be kind", "found"):
        assert private not in everything


async def test_content_is_recorded_on_request(address: str, spans: InMemorySpanExporter) -> None:
    await _run(address, {"agent": "support"}, capture_content=True)
    answered = [s for s in spans.get_finished_spans() if s.name.startswith("chat")][1]
    attributes = _attributes(answered)
    assert json.loads(attributes["gen_ai.input.messages"])[0]["parts"][0]["text"] == "hello"
    assert "the answer is private" in attributes["gen_ai.output.messages"]
    assert json.loads(attributes["gen_ai.system_instructions"]) == "be kind"


async def test_failed_span_has_no_message(address: str, spans: InMemorySpanExporter) -> None:
    await _run(address, {"agent": "support", "fails": True, "b": 1})
    (run,) = (span for span in spans.get_finished_spans() if span.name == "invoke_agent support")
    assert not run.status.is_ok
    assert _attributes(run)["error.type"] == "UnknownAgent"
    assert "private" not in run.to_json()


async def test_activity_log_lines_name_the_run(address: str, spans: InMemorySpanExporter) -> None:
    run_id, _ = await _run(address, {"agent": "support", "c": 1, "d": 1, "e": 1})
    assert {line["run_id"] for line in LOGGED} == {run_id}
    assert [line.get("step") for line in LOGGED] == [1, 1, None, 2, None]
    assert [line.get("call_id") for line in LOGGED] == [None, None, "call-1-1", None, "call-2-1"]
    assert [line["attempt"] for line in LOGGED] == [1, 2, 1, 1, 1]


_SCRAPED = """
import sys, urllib.request
from datetime import UTC, datetime
from perdure.activities import genai
from perdure.activities.traffic.circuit import Circuits
from perdure.messages import Usage
from perdure.settings import load_settings
from perdure.workers.observe.parked import ParkedRuns, Gauges
from perdure.workers.observe.telemetry import report_telemetry
port = int(sys.argv[1])
with report_telemetry(load_settings(metrics="prometheus", metrics_address=f"127.0.0.1:{port}")):
    with genai.model_call("anthropic", "claude", agent="a", run_id="r", settings={}) as span:
        genai.record_answer(span, agent="a", model="claude", request_id=None, finish="end_turn",
                       usage=Usage(input_tokens=10, output_tokens=3), cost_microusd=2_500_000)
    with genai.tool_call("search", call_id="c", agent="a", run_id="r"):
        pass
    genai.count_run("a", "end_turn", steps=4, cost_microusd=2_500_000, refused={"search": 3})
    circuits = Circuits(threshold=1, on_open=genai.count_circuit_opening)
    genai.watch_circuits(circuits)
    circuits.record_failure(circuits.admit("anthropic:claude"), "timeout")
    parked = Gauges({"payment": ParkedRuns(runs=3, since=datetime(2026, 1, 1, tzinfo=UTC))})
    print(urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics").read().decode())
    urllib.request.urlopen(f"http://127.0.0.1:{port + 1}/metrics")
"""


async def test_prometheus_metric_names() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-c", _SCRAPED, str(_two_free_ports())),
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == 0
    lines = out.decode().splitlines()
    for name in (
        "gen_ai_client_operation_duration_seconds_bucket",
        "gen_ai_client_token_usage_sum",
        "gen_ai_execute_tool_duration_seconds_count",
        "perdure_cost_total",
        "perdure_run_outcomes_total",
        "perdure_call_refusals_total",
        "perdure_run_steps_sum",
        "perdure_run_cost_sum",
        "perdure_circuit_openings_total",
        "perdure_circuit_open",
        "perdure_parked_runs",
        "perdure_parked_age_seconds",
    ):
        assert any(line.startswith(name + "{") for line in lines), name
    cost = next(line for line in lines if line.startswith("perdure_cost_total{"))
    assert cost.endswith(" 2.5")
    assert 'gen_ai_agent_name="a"' in cost


def _two_free_ports() -> int:
    """A free port whose successor is free too; below those that the system gives to connections at will."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port


@pytest.mark.parametrize(
    ("module", "settings", "extra"),
    [
        ("opentelemetry.exporter.otlp.proto.http.trace_exporter", {"otlp_endpoint": "http://x:1"}, "otlp"),
        ("opentelemetry.exporter.prometheus", {"metrics": "prometheus"}, "prometheus"),
    ],
)
async def test_missing_extra_is_named(module: str, settings: dict[str, str], extra: str) -> None:
    script = f"""
import sys
sys.modules[{module!r}] = None
from perdure.errors import DefinitionError
from perdure.settings import load_settings
from perdure.workers.observe.telemetry import report_telemetry
try:
    with report_telemetry(load_settings(**{settings!r})): pass
except DefinitionError as error:
    print(error)
"""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    assert f'pip install "perdure[{extra}]"' in out.decode()
