"""Reply check: each tool call and each typed output of a reply is validated once, here.

What was found is part of the activity's result and so of history: replay reads it, never judges
anew, and a newer validator cannot change a run's past.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json, to_json

from perdure.agent import Agent
from perdure.limits import explain
from perdure.messages import Part, Text, Thinking, ToolCall
from perdure.model import Reply, ToolDefinition
from perdure.schema import problem_with
from perdure.texts import fix_surrogates, truncate_middle
from perdure.wire.ids import tool_call_id
from perdure.wire.names import FINAL_ANSWER, READ_RESULT
from perdure.wire.spec import AgentSpec

FINAL_ANSWER_TOOL = ToolDefinition(
    name=FINAL_ANSWER,
    description="Give the final answer, in the form asked for. Call this, alone, when you are done.",
    input_schema={"type": "object"},
)
READ_RESULT_TOOL = ToolDefinition(
    name=READ_RESULT,
    description="Read more of a tool result that was too long to be shown whole.",
    input_schema={
        "type": "object",
        "properties": {
            "result": {"type": "string", "description": "The name given where the result was cut."},
            "offset": {"type": "integer", "minimum": 0, "description": "First byte to read."},
        },
        "required": ["result"],
        "additionalProperties": False,
    },
)


@dataclass(frozen=True, kw_only=True)
class CheckedReply:
    """A reply's parts with checked calls; the output when it was given, or what was wrong with it."""

    parts: list[Part]
    output: Any = None
    problem: str | None = None


def check_reply(
    reply: Reply, step: int, spec: AgentSpec, tools: Sequence[ToolDefinition], agent: Agent | None
) -> CheckedReply:
    """Give each call its id, and say what is wrong with those that cannot be carried out."""
    parts = _numbered(reply, step)
    if spec.output_schema is None:
        schemas = {tool.name: tool.input_schema for tool in tools}
        return CheckedReply(parts=[_checked(part, schemas) for part in parts])
    return _with_output(parts, spec, tools, agent, reply)


def _numbered(reply: Reply, step: int) -> list[Part]:
    """Providers' ids may repeat; ours name step and place. A reply cut by its length runs nothing."""
    parts: list[Part] = []
    count = 0
    for part in reply.parts:
        if isinstance(part, Text | Thinking):
            parts.append(part.model_copy(update={"text": fix_surrogates(part.text)}))
        elif not isinstance(part, ToolCall):
            parts.append(part)
        elif reply.stop != "max_tokens":
            count += 1
            parts.append(_writable(part).model_copy(update={"id": tool_call_id(step, count)}))
    return parts


def _writable(call: ToolCall) -> ToolCall:
    """The call; as a problem when it cannot be written down again: half characters, endless nesting."""
    try:
        # As deep as it will ever stand: what can be written may still be too deep, or too long a
        # number, to be read again, and then the run could never go on.
        # Nor is there a NaN in JSON: it would be read as nothing.
        from_json(to_json([[[[[[[[[[call.arguments]]]]]]]]]], inf_nan_mode="constants"), allow_inf_nan=False)
    except ValueError as error:
        problem = truncate_middle(f"the arguments cannot be read: {error}", 1000)
        return call.model_copy(
            update={"name": fix_surrogates(call.name), "arguments": {}, "problem": problem}
        )
    return call.model_copy(update={"name": fix_surrogates(call.name)})


def _checked(part: Part, schemas: Mapping[str, dict[str, Any]]) -> Part:
    if not isinstance(part, ToolCall) or part.problem is not None:
        return part
    problem = _problem(part, schemas)
    return part if problem is None else part.model_copy(update={"problem": truncate_middle(problem, 1000)})


def _problem(call: ToolCall, schemas: Mapping[str, dict[str, Any]]) -> str | None:
    schema = schemas.get(call.name)
    if schema is None:
        known = ", ".join(repr(name) for name in schemas) or "none"
        return f"there is no tool {call.name!r}; the tools are {known}"
    problem = problem_with(call.arguments, schema)
    return None if problem is None else f"the arguments do not fit: {problem}"


def _with_output(
    parts: list[Part],
    spec: AgentSpec,
    tools: Sequence[ToolDefinition],
    agent: Agent | None,
    reply: Reply,
) -> CheckedReply:
    schemas = {tool.name: tool.input_schema for tool in tools}
    asked = [part for part in parts if isinstance(part, ToolCall)]
    finals = [call for call in asked if call.name == FINAL_ANSWER]
    if finals:
        return _from_calls(parts, finals, schemas, spec, agent)
    if asked or reply.stop not in ("end_turn", "stop_sequence"):
        return CheckedReply(parts=[_checked(part, schemas) for part in parts])
    return _from_text(parts, spec, agent)


def _from_calls(
    parts: list[Part],
    finals: list[ToolCall],
    schemas: Mapping[str, dict[str, Any]],
    spec: AgentSpec,
    agent: Agent | None,
) -> CheckedReply:
    """The first final answer that fits is the output; a model may have tried twice in one reply."""
    output, problems = None, dict[str, str]()
    for call in finals:
        given, problem = (None, call.problem) if call.problem else _judged(call.arguments, spec, agent)
        if problem is not None:
            problems[call.id] = problem
        elif output is None:
            output = given
    marked: list[Part] = []
    for part in parts:
        if isinstance(part, ToolCall) and part.name == FINAL_ANSWER:
            marked.append(part.model_copy(update={"problem": problems.get(part.id)}))
        else:
            marked.append(_checked(part, schemas))
    return CheckedReply(parts=marked, output=output)


def _from_text(parts: list[Part], spec: AgentSpec, agent: Agent | None) -> CheckedReply:
    """Some models answer with the JSON itself instead of the call."""
    text = "".join(part.text for part in parts if isinstance(part, Text)).strip()
    text = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError:
        return CheckedReply(
            parts=parts, problem=f"Call {FINAL_ANSWER!r} with your answer in the form asked for."
        )
    output, problem = _judged(value, spec, agent)
    if problem is not None:
        return CheckedReply(parts=parts, problem=f"That does not fit: {problem}. Call {FINAL_ANSWER!r}.")
    return CheckedReply(parts=parts, output=output)


def _judged(value: Any, spec: AgentSpec, agent: Agent | None) -> tuple[Any, str | None]:
    """The output as JSON, or what is wrong with it: by the pinned schema, then by the type's own rules."""
    assert spec.output_schema is not None
    problem = problem_with(value, spec.output_schema)
    if problem is not None:
        return None, f"the answer does not fit: {truncate_middle(problem, 1000)}"
    adapter = agent.output_adapter() if agent else None
    if adapter is None:
        return value, None
    try:
        # As JSON, which it is: a strict model takes a date's text from JSON only. By alias: it is to
        # fit the type again.
        return adapter.dump_python(adapter.validate_json(to_json(value)), mode="json", by_alias=True), None
    except ValidationError as error:
        return None, f"the answer does not fit: {explain(error)}"
