"""Steps of a run, derived from its transcript: nothing else is stored for them."""

from collections.abc import Sequence

from perdure.messages import ApprovalRecord, Message, ToolCall, ToolResult, Usage, Value


class StepCall(Value):
    """A tool call of a step, with its outcome."""

    call_id: str
    tool: str
    arguments: dict[str, object]
    is_error: bool = False
    duration_ms: int = 0
    attempts: int = 0
    finished: bool = False
    stand_in: str | None = None
    """Source of the result if the tool failed: another tool's name, `answer` or `remembered`."""
    approval: ApprovalRecord | None = None
    """Decision of the person who was asked, with the arguments that were used if they changed them."""


class Step(Value):
    """A model call, and the tool calls of its answer."""

    step: int
    model: str
    stop: str
    text: str
    duration_ms: int
    """Of the model call."""
    usage: Usage
    cost_microusd: int | None
    attempts: int
    """Of the model call; more than 1 means that earlier ones failed."""
    errors: list[str]
    """Failures before this answer: of models of the fallback chain, and of tools."""
    tool_calls: list[StepCall]
    request_digest: str | None = None


def steps_of(messages: Sequence[Message]) -> list[Step]:
    """Return the steps, in order."""
    results = {result.call_id: result for message in messages for result in message.tool_results}
    return [_step(message, results) for message in messages if message.meta is not None]


def _step(message: Message, results: dict[str, ToolResult]) -> Step:
    meta = message.meta
    assert meta is not None
    answered = [results[call.id] for call in message.tool_calls if call.id in results]
    failed = [result for result in answered if result.is_error]
    return Step(
        step=meta.step,
        model=meta.model,
        stop=meta.stop,
        text=message.text,
        duration_ms=meta.duration_ms,
        usage=meta.usage,
        cost_microusd=meta.cost_microusd,
        attempts=meta.attempts,
        errors=[*meta.errors, *(f"{result.name}: {result.text[:200]}" for result in failed)],
        tool_calls=[_call(call, results.get(call.id)) for call in message.tool_calls],
        request_digest=meta.request_digest,
    )


def _call(call: ToolCall, result: ToolResult | None) -> StepCall:
    return StepCall(
        call_id=call.id,
        tool=call.name,
        arguments=dict(call.arguments),
        is_error=result.is_error if result else False,
        duration_ms=result.duration_ms if result else 0,
        attempts=result.attempts if result else 0,
        finished=result is not None,
        stand_in=result.stand_in if result else None,
        approval=result.approval if result else None,
    )
