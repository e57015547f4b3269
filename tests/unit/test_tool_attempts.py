"""Attempts of a tool's call: failures of the tool and deaths of its workers are counted apart."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from perdure import Agent, FatalToolError, RetryableToolError, tool
from perdure.activities.content.blobs import FileBlobs
from perdure.activities.content.transcripts import Transcripts
from perdure.activities.elsewhere import delay_elsewhere
from perdure.activities.hooks import HookRunner
from perdure.activities.node import NodeCalls
from perdure.activities.threads import FunctionThreads
from perdure.activities.tool import ToolCalls
from perdure.graph import Graph, NodeInput
from perdure.hooks import Hook, HookedRun
from perdure.model import ModelConfig, ModelEvent, ModelRequest, TextDelta
from perdure.wire.effects import FUNCTION_ATTEMPTS, HookInput, NodeCall, Progress, ToolInput, most_attempts
from perdure.wire.names import NOT_SERVED
from tests.unit.test_attempt_costs import MODEL_CALL, model_calls


@dataclass
class Attempt:
    """One attempt of a call, as a worker gets it, and the heartbeats that it sends."""

    number: int
    earlier: Progress | None = None
    heartbeats: list[Progress] = field(default_factory=list[Progress])

    async def run(self, function: Any, argument: Any) -> Any:
        """Run the activity as this attempt."""
        environment = ActivityEnvironment()
        details = [self.earlier.model_dump(mode="json")] if self.earlier else []
        environment.info = replace(environment.info, attempt=self.number, heartbeat_details=details)
        environment.on_heartbeat = self.heartbeats.append
        return await environment.run(function, argument)


def _tool_calls(tmp_path: Any, error: BaseException) -> ToolCalls:
    @tool(effect="write")
    async def pay() -> str:
        """Pay."""
        raise error

    agent = Agent(name="a", model="scripted:x", tools=[pay])
    blobs = FileBlobs(tmp_path)
    return ToolCalls(agents={"a": agent}, blobs=blobs, threads=FunctionThreads(), transcripts=Transcripts())


def _input(**changed: Any) -> ToolInput:
    fields: dict[str, Any] = {
        "agent": "a",
        "tool": "pay",
        "call_id": "call-1-1",
        "arguments": {},
        "writes": True,
    }
    return ToolInput.model_validate({**fields, "idempotency_key": "k", **changed})


def _earlier(attempt: int, failures: int, *, may_have_effect: bool = False) -> Progress:
    return Progress(call="x", attempt=attempt, seq=1, failures=failures, may_have_effect=may_have_effect)


async def test_deaths_leave_the_tools_attempts(tmp_path: Any) -> None:
    """After three deaths the first failure is the first: it is retried twice more."""
    tools = _tool_calls(tmp_path, ConnectionRefusedError("nobody there"))
    earlier = _earlier(3, 0)
    for number, failures in ((4, 1), (5, 2)):
        attempt = Attempt(number, earlier)
        with pytest.raises(ApplicationError, match="nobody there") as failed:
            await attempt.run(tools.call_tool, _input())
        assert not failed.value.non_retryable
        earlier = attempt.heartbeats[-1]
        assert earlier.failures == failures
    outcome = await Attempt(6, earlier).run(tools.call_tool, _input())
    assert outcome.result.text == "ConnectionRefusedError: nobody there (after 3 attempts)"
    assert outcome.result.attempts == 6
    assert not outcome.result.may_have_effect


@pytest.mark.parametrize(
    ("error", "earlier", "uncertain"),
    [
        (FatalToolError("declined"), None, False),
        (FatalToolError("declined"), _earlier(1, 1, may_have_effect=True), True),
        (FatalToolError("declined"), _earlier(1, 1), False),
        # The attempt before this one died before its first heartbeat.
        (FatalToolError("declined"), _earlier(0, 0), True),
        (KeyError("id"), None, True),
        (RetryableToolError("busy"), None, False),
    ],
)
async def test_write_tells_that_it_may_have_happened(
    tmp_path: Any, error: Exception, earlier: Progress | None, uncertain: bool
) -> None:
    """The fact comes from any attempt, whatever the last error is, and the model reads it."""
    tools = _tool_calls(tmp_path, error)
    outcome = await Attempt(2 if earlier else 1, earlier).run(tools.call_tool, _input(attempts=1))
    assert outcome.result.may_have_effect is uncertain
    assert outcome.result.text.endswith(". It may or may not have taken effect.") is uncertain
    read = await Attempt(2 if earlier else 1, earlier).run(tools.call_tool, _input(attempts=1, writes=False))
    assert not read.result.may_have_effect


async def test_repeated_run_may_have_written_before(tmp_path: Any) -> None:
    """In a node that is run again, and after a reset, a refused write may have happened earlier."""
    tools = _tool_calls(tmp_path, FatalToolError("declined"))
    outcome = await Attempt(1).run(tools.call_tool, _input(earlier_attempts=1))
    assert outcome.result.may_have_effect
    refused = await Attempt(1).run(tools.call_tool, _input(earlier_attempts=1, arguments={"cents": 5}))
    assert not refused.result.may_have_effect, "such arguments never passed"


@pytest.mark.parametrize("point", ["tool", "function", "hooks"])
async def test_missing_code_is_no_failure(tmp_path: Any, point: str) -> None:
    """A worker that does not have what is called sends the call on soon, and counts no failure.

    The error has the mark only while no worker that has it was met: such a call may be made anew.
    """
    missing: tuple[Any, Any]
    if point == "tool":
        missing = replace(_tool_calls(tmp_path, ValueError()), agents={}).call_tool, _input(attempts=1)
    elif point == "function":
        call = NodeCall(graph="g", node="stamp", key="stamp-1.1", input={"task": "t", "node": "stamp"})
        nodes = NodeCalls(graphs={}, blobs=FileBlobs(tmp_path), threads=FunctionThreads())
        missing = nodes.call_node, call
    else:
        missing = HookRunner(agents={}).run_hooks, ASKED
    earlier: Progress | None = None
    for number in range(1, 12):
        attempt = Attempt(number, earlier)
        with pytest.raises(ApplicationError, match="not on this worker") as away:
            await attempt.run(*missing)
        earlier = attempt.heartbeats[-1]
        assert not away.value.non_retryable
        assert away.value.next_retry_delay is not None
        assert (earlier.failures, earlier.untried, NOT_SERVED in away.value.details) == (0, True, True)
    for met in (_earlier(3, 1), _earlier(2, 0), None):
        with pytest.raises(ApplicationError, match="not on this worker") as away:
            await Attempt(4, met).run(*missing)
        assert NOT_SERVED not in away.value.details


def test_delay_grows_and_bursts() -> None:
    """A worker that appears is met within a minute by one of several attempts in a row."""
    delays = [delay_elsewhere(attempt).total_seconds() for attempt in range(1, 200)]
    assert sum(delays[:9]) < 8
    assert max(delays) < 40
    for start in range(9, 190):
        assert sum(delay < 1 for delay in delays[start : start + 3]) == 2


async def test_deaths_leave_a_functions_attempts(tmp_path: Any) -> None:
    def stamp(job: NodeInput) -> str:
        raise ConnectionResetError(f"attempt {job.attempt}")

    graph = Graph(name="g", nodes={"stamp": stamp}, entry="stamp")
    nodes = NodeCalls(graphs={"g": graph}, blobs=FileBlobs(tmp_path), threads=FunctionThreads())
    call = NodeCall(
        graph="g", node="stamp", key="stamp-1.1", input={"task": "t", "node": "stamp"}, earlier_attempts=1
    )
    earlier = _earlier(3, 0)
    for number in range(4, 4 + FUNCTION_ATTEMPTS):
        attempt = Attempt(number, earlier)
        with pytest.raises(ApplicationError, match=f"attempt {number + 1}. It may or may not") as failed:
            await attempt.run(nodes.call_node, call)
        earlier = attempt.heartbeats[-1]
        assert failed.value.non_retryable is (earlier.failures == FUNCTION_ATTEMPTS)


class _Guard(Hook):
    """Hook that raises."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    async def on_start(self, run: HookedRun) -> None:
        raise self.error


class _SyncGuard(_Guard):
    """The same in a thread."""

    def on_start(self, run: HookedRun) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        raise self.error


def _hooks(hook: Hook) -> HookRunner:
    return HookRunner(agents={"a": Agent(name="a", model="scripted:x", hooks=[hook])})


ASKED = HookInput(agent="a", point="on_start")


async def test_deaths_leave_a_hooks_attempts() -> None:
    """Neither deaths of workers, nor workers without the agent, are failures of a hook."""
    hooks = _hooks(_Guard(ValueError("no")))
    earlier = _earlier(5, 0)
    with pytest.raises(ApplicationError, match="not on this worker") as away:
        await Attempt(6, earlier).run(HookRunner(agents={}).run_hooks, ASKED)
    assert not away.value.non_retryable
    for number in range(7, 7 + FUNCTION_ATTEMPTS):
        attempt = Attempt(number, earlier)
        with pytest.raises(ApplicationError, match="hook _Guard failed") as failed:
            await attempt.run(hooks.run_hooks, ASKED)
        earlier = attempt.heartbeats[-1]
        assert failed.value.non_retryable is (earlier.failures == FUNCTION_ATTEMPTS)


async def _fail_tool(folder: Any, error: BaseException) -> str:
    outcome = await Attempt(1).run(_tool_calls(folder, error).call_tool, _input())
    assert outcome.result.is_error
    return str(outcome.result.text)


async def _fail_node(folder: Any, error: BaseException) -> str:
    async def stamp(job: NodeInput) -> str:
        raise error

    graph = Graph(name="g", nodes={"stamp": stamp}, entry="stamp")
    nodes = NodeCalls(graphs={"g": graph}, blobs=FileBlobs(folder), threads=FunctionThreads())
    call = NodeCall(graph="g", node="stamp", key="stamp-1.1", input={"task": "t", "node": "stamp"})
    with pytest.raises(ApplicationError) as failed:
        await Attempt(1).run(nodes.call_node, call)
    assert failed.value.non_retryable
    return failed.value.message


async def _fail_hook(folder: Any, error: BaseException) -> str:
    attempt = Attempt(FUNCTION_ATTEMPTS, _earlier(FUNCTION_ATTEMPTS - 1, FUNCTION_ATTEMPTS - 1))
    with pytest.raises(ApplicationError) as failed:
        await attempt.run(_hooks(_Guard(error)).run_hooks, ASKED)
    assert failed.value.non_retryable
    return failed.value.message


async def _fail_sync_hook(folder: Any, error: BaseException) -> str:
    with pytest.raises(ApplicationError) as failed:
        await Attempt(1).run(_hooks(_SyncGuard(error)).run_hooks, ASKED)
    assert failed.value.type == "hook_failed"
    return failed.value.message


async def _fail_model(folder: Any, error: BaseException) -> str:
    class Adapter:
        def check(self, config: ModelConfig) -> None: ...

        async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
            yield TextDelta(text="hello")
            raise error

    with pytest.raises(ApplicationError) as failed:
        await Attempt(1).run(model_calls(folder, Adapter()).call_model, MODEL_CALL)
    [failure] = failed.value.details
    assert failure.kind == ("stream_cut" if isinstance(error, asyncio.CancelledError) else "bug")
    assert failure.wasted.total_tokens
    return failed.value.message


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("carrier", [_fail_tool, _fail_node, _fail_hook, _fail_sync_hook, _fail_model])
async def test_users_code_cannot_end_an_attempt(
    tmp_path: Any, carrier: Callable[[Any, BaseException], Awaitable[str]], error: type[BaseException]
) -> None:
    """A cancellation that nobody asked for, or the end of the process, is the failure of the code that raised it."""
    assert error.__name__ in await carrier(tmp_path, error())


@pytest.mark.parametrize(
    ("failures", "repeatable", "most"), [(3, True, 13), (1, True, 11), (3, False, 13), (1, False, 1)]
)
def test_only_attempt_of_a_write_is_not_repeated(failures: int, repeatable: bool, most: int) -> None:
    assert most_attempts(failures, repeatable=repeatable) == most
