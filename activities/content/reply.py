"""Reply check: each tool call and each typed output of a reply is validated once, here.

Arguments are also made canonical here, and stand so in the transcript: policy, approval digest, person and tool
see the same values. The result of the check is part of the activity's result, and so of history. Replay reads it
and never validates again, so a newer validator cannot change a run's past.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import from_json

from perdure.agent import Agent
from perdure.definitions import explain
from perdure.messages import Opaque, Part, Text, Thinking, ToolCall
from perdure.model import Reply, ToolDefinition
from perdure.outputs import unwrap, wrap
from perdure.schema import canonical_arguments, problem_with
from perdure.texts import fix_surrogates
from perdure.tools import Tool
from perdure.wire.effects import CUT_CALL
from perdure.wire.ids import tool_call_id
from perdure.wire.names import FINAL_ANSWER, READ_BACK, READ_RESULT
from perdure.wire.plain import problem_as_json
from perdure.wire.spec import AgentSpec, ToolSpec

from .redact import redact_and_cut, redact_error

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
READ_BACK_TOOL = ToolDefinition(
    name=READ_BACK,
    description=(
        "Read earlier messages of this conversation that are no longer shown: those that hold the given words, "
        "or those from number `first` to number `last`. Without either, the newest of them."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "words": {"type": "string", "description": "Words to search for, such as a name or a number."},
            "first": {"type": "integer", "minimum": 1, "description": "Number of the first message to read."},
            "last": {"type": "integer", "minimum": 1, "description": "Number of the last message to read."},
        },
        "additionalProperties": False,
    },
)


@dataclass(frozen=True, kw_only=True)
class CheckedReply:
    """Reply whose tool calls and typed output have been validated."""

    parts: list[Part]
    """Parts of the reply; an invalid tool call carries its problem."""
    output: Any = None
    """Typed output as JSON, if the reply gave it."""
    problem: str | None = None
    """Problem of an output that was given as text; that of a call stands with the call."""


def check_reply(
    reply: Reply, step: int, spec: AgentSpec, tools: Sequence[ToolDefinition], agent: Agent | None
) -> CheckedReply:
    """Return the reply with ids and canonical arguments for its tool calls; invalid calls carry their problem."""
    parts = _number_calls(reply, step)
    check = _CallCheck(schemas={tool.name: tool.input_schema for tool in tools}, spec=spec, agent=agent)
    if spec.output_schema is None:
        return CheckedReply(parts=[check.check(part) for part in parts])
    return _check_output(parts, check, reply)


def _number_calls(reply: Reply, step: int) -> list[Part]:
    """Return the parts with our ids: providers' ids may repeat within a run."""
    parts: list[Part] = []
    count = 0
    for part in reply.parts:
        if isinstance(part, Text | Thinking):
            parts.append(part.model_copy(update={"text": fix_surrogates(part.text)}))
        elif isinstance(part, Opaque):
            # No history could hold another one, and its provider could not read it either.
            parts += [] if problem_as_json(part.data) else [part]
        elif not isinstance(part, ToolCall):
            parts.append(part)
        else:
            count += 1
            parts.append(_ensure_json(part).model_copy(update={"id": tool_call_id(step, count)}))
    return _mark_cut_call(parts) if reply.stop == "max_tokens" else parts


def _mark_cut_call(parts: list[Part]) -> list[Part]:
    """Return the parts of a cut reply; a call at its end carries that as its problem.

    Where the cut falls nobody knows but the provider: arguments that parse may still lack their end. Calls before
    the last part were followed by something, so they are complete.
    """
    last = parts[-1] if parts else None
    return (
        [*parts[:-1], last.model_copy(update={"problem": CUT_CALL})] if isinstance(last, ToolCall) else parts
    )


def _ensure_json(call: ToolCall) -> ToolCall:
    """Return the call; with a problem if its arguments cannot be written as JSON and read again."""
    named = call.model_copy(update={"name": fix_surrogates(call.name)})
    if call.extra and problem_as_json(call.extra):
        named = named.model_copy(update={"extra": {}})
    problem = problem_as_json(call.arguments)
    if problem is None:
        return named
    problem = redact_and_cut(f"the arguments cannot be read: {problem}", 1000)
    return named.model_copy(update={"arguments": {}, "problem": problem})


@dataclass(frozen=True, kw_only=True)
class _CallCheck:
    """Check of tool calls against the run's pinned schemas, and the functions on this worker."""

    schemas: Mapping[str, dict[str, Any]]
    spec: AgentSpec
    agent: Agent | None

    def check(self, part: Part) -> Part:
        """Return the part; a call with canonical arguments, or with the problem of its own ones."""
        if not isinstance(part, ToolCall) or part.problem is not None:
            return part
        try:
            return part.model_copy(update={"arguments": self._canonical(part)})
        except ValueError as error:
            return part.model_copy(update={"problem": redact_error(error, 1000)})

    def _canonical(self, call: ToolCall) -> dict[str, Any]:
        schema = self.schemas.get(call.name)
        if schema is None:
            known = ", ".join(repr(name) for name in self.schemas) or "none"
            raise ValueError(f"there is no tool {call.name!r}; the tools are {known}")
        tool = self.spec.tool(call.name)
        resource = tool.resource if tool else None
        arguments = canonical_arguments(
            call.arguments, schema, resource, defaults=tool is not None and self._is_judged(tool)
        )
        problem = problem_with(arguments, schema)
        if problem is not None:
            raise ValueError(f"the arguments do not fit: {problem}")
        return bind_arguments(self.agent, call.name, arguments, schema, resource)

    def _is_judged(self, tool: ToolSpec) -> bool:
        """Return whether somebody may judge the call. They must see the defaults that the tool will get."""
        return tool.approval or self.spec.policy is not None or "before_tool" in self.spec.hooks


def bind_arguments(
    agent: Agent | None, name: str, arguments: dict[str, Any], schema: dict[str, Any], resource: str | None
) -> dict[str, Any]:
    """Return the arguments as the function on this worker reads them, if it is the pinned version.

    Raises:
        ValueError: they do not fit the function.

    """
    known = agent.tools if agent else ()
    tool = next((tool for tool in known if isinstance(tool, Tool) and tool.name == name), None)
    # During a deploy, this worker may have another version: its types say nothing about the pinned schema.
    if tool is None or tool.input_schema != schema:
        return arguments
    try:
        return tool.signature.canonical(arguments, resource)
    except ValueError as error:
        raise ValueError(f"the arguments do not fit: {error}") from None
    except Exception:  # A validator of the user may raise anything. The call itself will report it.
        return arguments


def _check_output(parts: list[Part], check: _CallCheck, reply: Reply) -> CheckedReply:
    calls = [part for part in parts if isinstance(part, ToolCall)]
    finals = [call for call in calls if call.name == FINAL_ANSWER]
    if finals:
        return _output_from_calls(parts, finals, check)
    if calls or reply.stop not in ("end_turn", "stop_sequence"):
        return CheckedReply(parts=[check.check(part) for part in parts])
    return _output_from_text(parts, check.spec, check.agent)


def _output_from_calls(parts: list[Part], finals: list[ToolCall], check: _CallCheck) -> CheckedReply:
    """Return the first valid final answer as the output: a model may answer twice in one reply."""
    output, problems = None, dict[str, str]()
    for call in finals:
        value, problem = (
            (None, call.problem)
            if call.problem
            else _validate_output(call.arguments, check.spec, check.agent)
        )
        if problem is not None:
            problems[call.id] = problem
        elif output is None:
            output = value
    marked: list[Part] = []
    for part in parts:
        if isinstance(part, ToolCall) and part.name == FINAL_ANSWER:
            marked.append(part.model_copy(update={"problem": problems.get(part.id)}))
        else:
            marked.append(check.check(part))
    return CheckedReply(parts=marked, output=output)


def _output_from_text(parts: list[Part], spec: AgentSpec, agent: Agent | None) -> CheckedReply:
    """Return the output that a model wrote as JSON in its text, instead of a call."""
    text = "".join(part.text for part in parts if isinstance(part, Text)).strip()
    text = text.removeprefix("```json").removeprefix("```").removesuffix("```").strip()
    try:
        value = from_json(text, allow_inf_nan=False)
    except ValueError:
        return CheckedReply(
            parts=parts, problem=f"Call {FINAL_ANSWER!r} with your answer in the form asked for."
        )
    # A model that writes text may leave the object out that its tool would need.
    output, problem = _validate_output(wrap(value) if spec.wraps_output else value, spec, agent)
    if problem is not None:
        return CheckedReply(parts=parts, problem=f"That does not fit: {problem}. Call {FINAL_ANSWER!r}.")
    return CheckedReply(parts=parts, output=output)


def _validate_output(value: Any, spec: AgentSpec, agent: Agent | None) -> tuple[Any, str | None]:
    """Return the output as JSON, or the problem with it.

    The run's pinned schema is checked first. Then come the rules of the output's type on this worker, which a
    schema cannot express. They count only if the type has the pinned schema: after a deploy it may be another.
    """
    assert spec.output_schema is not None
    problem = problem_as_json(value) or problem_with(value, spec.output_schema)
    if problem is not None:
        return None, f"the answer does not fit: {redact_and_cut(problem, 1000)}"
    output = unwrap(value) if spec.wraps_output else value
    form = agent.output_form if agent else None
    if form is None or form.schema != spec.output_schema:
        return output, None
    try:
        # Dumped by alias, so that the output fits the type when it is read again.
        return form.adapter.dump_python(form.read(output), mode="json", by_alias=True), None
    except ValidationError as error:
        # The type's own checks may say anything.
        return None, f"the answer does not fit: {redact_and_cut(explain(error), 1000)}"
    except Exception as error:
        return None, f"the answer cannot be checked: {redact_error(error, 1000)}"
