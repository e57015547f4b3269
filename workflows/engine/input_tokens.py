"""Tokens that the next model call reads: the provider's last count, or an upper bound of our own.

Rules
1. A provider's count of the conversation is used for the model that counted. Another model has another tokenizer.
2. What no provider has counted yet is estimated, never below what a provider may count (`perdure.tokens`).
"""

from collections.abc import Sequence
from dataclasses import replace

from perdure.fitting import fit_results, most_result_tokens
from perdure.messages import Message, estimated_tokens
from perdure.model import canonical_json
from perdure.planning import PLAN_TOOL, plan_reminder
from perdure.swarm import HANDOFF_TOOL
from perdure.tokens import text_tokens, tool_prompt_tokens
from perdure.wire.spec import AgentSpec

from .read_on import offers_read_back
from .state import AgentState

_OWN_TOOL_TOKENS = 400
"""Tokens of a tool beside those of the spec, of the note of a last call, or of instructions for a summary."""


def fixed_tokens(spec: AgentSpec, *, has_peers: bool) -> int:
    """Return an upper bound of what goes with each call beside the messages: instructions and tools."""
    tools = [tool.definition.model_dump() for tool in spec.tools]
    if has_peers:
        tools.append(HANDOFF_TOOL.model_dump())
    if spec.planning:
        tools.append(PLAN_TOOL.model_dump())
    # A fallback may have longer instructions of its own.
    own = [model.instructions for model in spec.models if model.instructions is not None]
    texts = (canonical_json([text, tools, spec.output_schema or ""]) for text in [spec.instructions, *own])
    fixed = max(text_tokens(text.decode()) for text in texts)
    if not tools and spec.output_schema is None:
        return fixed
    return fixed + max(tool_prompt_tokens(model.config.provider) for model in spec.models)


def visible_tokens(state: AgentState) -> int:
    """Return an upper bound of what the model sees now, by our own estimate alone."""
    return unmoved_tokens(state) + shown_tokens(state, state.transcript.visible)


def count_anew(state: AgentState) -> AgentState:
    """Return the state whose context is counted by our own estimate: the provider's count says nothing of it now."""
    counted = replace(state.transcript, context_tokens=visible_tokens(state), counted_by="")
    return replace(state, transcript=counted)


def result_bound(state: AgentState) -> int:
    """Return the most tokens of what the model is shown of the results of one step."""
    config = state.spec.models[state.chain.model].config
    return most_result_tokens(state.spec.context, config, state.transcript.result_tokens)


def shown_tokens(state: AgentState, messages: Sequence[Message]) -> int:
    """Return an upper bound of the tokens of the messages, as the model is shown them."""
    return sum(estimated_tokens(message) for message in fit_results(messages, result_bound(state)))


def added_tokens(state: AgentState, messages: Sequence[Message]) -> int:
    """Return an upper bound of what the messages add at the end: their step's results share one bound."""
    if not any(message.answer_of for message in messages):
        return shown_tokens(state, messages)
    before = newest_results(state)
    return shown_tokens(state, [*before, *messages]) - shown_tokens(state, before)


def newest_results(state: AgentState) -> tuple[Message, ...]:
    """Return the messages since the model's last reply."""
    messages = state.transcript.messages
    replies = (i for i in range(len(messages) - 1, -1, -1) if messages[i].role == "assistant")
    return messages[next(replies, -1) + 1 :]


def unmoved_tokens(state: AgentState) -> int:
    """Return an upper bound of what the model reads beside messages: instructions, tools, the summary."""
    fixed = fixed_tokens(state.spec, has_peers=bool(state.peers))
    return fixed + text_tokens(state.transcript.summary)


def next_input_tokens(state: AgentState) -> int:
    """Return an upper bound of the tokens that the next call reads, unread messages included."""
    counted = state.transcript.context_tokens
    if state.transcript.counted_by not in ("", state.spec.models[state.chain.model].config.name):
        counted = max(counted, visible_tokens(state))
    unread = shown_tokens(state, state.inbox.messages)
    return counted + unread + _unlisted_tokens(state)


def _unlisted_tokens(state: AgentState) -> int:
    """Return the tokens of what only some calls carry: the note of a last call, the plan, the tool that reads on."""
    transcript = state.transcript
    step = state.step
    offered = transcript.spilled + offers_read_back(state)
    tokens = _OWN_TOOL_TOKENS * ((step.wrap_up is not None) + offered + bool(step.summarizing))
    if transcript.plan and transcript.planned_at < transcript.window_start:
        tokens += text_tokens(plan_reminder(transcript.plan))
    return tokens
