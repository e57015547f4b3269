"""States of runs, and what may happen to them, made by hand."""

from datetime import UTC, datetime, timedelta
from typing import Any

from perdure.graph import GraphCode
from perdure.limits import Limits
from perdure.messages import Message, Part, ReplyMeta, Text, ToolCall, ToolResult, Usage
from perdure.model import ModelConfig, ModelStop
from perdure.prices import Price
from perdure.wire.effects import ModelFailure, ModelOutcome
from perdure.wire.requests import RunRequest
from perdure.wire.results import RunResult, RunStatus
from perdure.wire.spec import AgentSpec, ModelSpec, ToolSpec
from perdure.workflows.engine.events import ModelFailed, Replied, StepBegan
from perdure.workflows.engine.fold import fold, initial
from perdure.workflows.engine.program import RunningProgram
from perdure.workflows.engine.programs import UserCode, program_for
from perdure.workflows.engine.session import SessionProgram
from perdure.workflows.engine.state import AgentState, End, RunState

NOW = datetime(2026, 11, 20, tzinfo=UTC)
PRICE = Price(input=1_000_000, output=2_000_000, cache_read=100_000, cache_write=1_250_000)
SCHEMA = {"type": "object"}


def tool_spec(name: str, **changed: Any) -> ToolSpec:
    settings: dict[str, Any] = {"kind": "function", "name": name, "description": "x", "input_schema": SCHEMA}
    return ToolSpec(**{**settings, **changed})


def spec_of(**changed: Any) -> AgentSpec:
    settings: dict[str, Any] = {
        "name": "a",
        "instructions": "Help.",
        "models": (ModelSpec(config=ModelConfig(name="scripted:x"), price=PRICE),),
        "tools": (
            tool_spec("work"),
            tool_spec("single", concurrency=1),
            tool_spec("pay", approval=True, effect="write"),
            tool_spec("ask_person", kind="person"),
        ),
        "limits": Limits(steps=None),
    }
    return AgentSpec(**{**settings, **changed})


def begun(prompt: str | list[Part] = "the task", request: Any = None, **changed: Any) -> AgentState:
    asked = request or RunRequest(agent="a", prompt=prompt)
    return initial(asked, spec_of(**changed), NOW)


def asked(state: AgentState) -> AgentState:
    return fold(state, StepBegan())


def reply(
    state: AgentState,
    *calls: ToolCall,
    text: str = "",
    stop: ModelStop | None = None,
    usage: Usage | None = None,
    output: Any = None,
    problem: str | None = None,
) -> Replied:
    """An answer to the state's model call; its calls are numbered as the activity would."""
    numbered = [
        call.model_copy(update={"id": f"call-{state.ledger.steps}-{n}"}) for n, call in enumerate(calls, 1)
    ]
    used = usage or Usage(input_tokens=state.transcript.context_tokens, output_tokens=5)
    price = state.spec.models[state.chain.model].price
    meta = ReplyMeta(
        step=state.ledger.steps,
        model=state.spec.models[state.chain.model].config.name,
        usage=used,
        cost_microusd=price.cost_microusd(used) if price else None,
    )
    parts: list[Part] = [*([Text(text=text)] if text else []), *numbered]
    outcome = ModelOutcome(
        message=Message(role="assistant", parts=parts, meta=meta),
        stop=stop or ("tool_calls" if calls else "end_turn"),
        output=output,
        output_problem=problem,
    )
    return Replied(outcome=outcome, at=NOW + timedelta(seconds=state.ledger.steps))


def call(name: str, problem: str | None = None, **arguments: Any) -> ToolCall:
    return ToolCall(id="", name=name, arguments=arguments, problem=problem)


def answered(state: AgentState, *calls: ToolCall, **more: Any) -> AgentState:
    """After one whole model call."""
    state = asked(state)
    return fold(state, reply(state, *calls, **more))


def failed(state: AgentState, kind: str, **more: Any) -> AgentState:
    return fold(asked(state), ModelFailed(failure=ModelFailure(kind=kind, message="no", **more)))


def result(call_id: str, name: str = "work", text: str = "ok", **more: Any) -> ToolResult:
    return ToolResult(call_id=call_id, name=name, content=[Text(text=text)], **more)


def assert_well_formed(messages: tuple[Message, ...]) -> None:
    """Every call is answered once, in order, by the message right after the one that asked."""
    for index, message in enumerate(messages):
        asked_for = [c.id for c in message.tool_calls]
        if message.role == "assistant" and asked_for:
            following = messages[index + 1]
            assert following.role == "tool"
            assert [r.call_id for r in following.tool_results] == asked_for
        if message.role == "tool":
            assert messages[index - 1].tool_calls, "results follow the calls they answer"
        assert message.role == "assistant" or not asked_for
    ids = [c.id for message in messages for c in message.tool_calls]
    assert len(ids) == len(set(ids))


def program_of(state: RunState, code: GraphCode | None = None) -> RunningProgram[Any]:
    """The program that runs a state."""
    program = program_for(state.spec, UserCode(functions=lambda _: code or GraphCode()))
    return SessionProgram(program) if state.session else program


def details(state: RunState) -> str:
    return program_of(state).details(state)


def result_of(state: RunState, end: End) -> RunResult:
    found: RunResult = program_of(state).result(state, end)
    return found


def status_report(state: RunState) -> RunStatus:
    found: RunStatus = program_of(state).status(state)
    return found
