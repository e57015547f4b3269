"""Inputs of model calls: of a step's call, and of the call that writes a summary."""

from perdure.messages import size_bytes
from perdure.wire.effects import (
    SPEC_DIGEST_CHARS,
    ModelInput,
    TranscriptView,
    summary_digest,
    tail_digest,
    tail_of,
)
from perdure.wire.spec import ModelSpec

from .engine.commands import CallModel, Summarize
from .engine.read_on import offers_read_back
from .engine.state import AgentState
from .engine.transcript import Transcript
from .engine.window import request_before

FRESH_BYTES = 512
"""Most bytes of new messages that go with a model call. They are in history already, as the results of
tools: a longer message would be paid for twice."""


def model_input(state: AgentState, command: CallModel) -> ModelInput:
    """Return the input of the next model call: where to look, and the newest messages if they are small."""
    # The digest covers what the worker cannot know by itself: its last answer may not have counted.
    newest = tail_of(state.messages, state.transcript.window_start)
    fresh = [message for message in newest if message.role != "assistant"]
    small = sum(size_bytes(message) for message in fresh) <= FRESH_BYTES
    return ModelInput(
        agent=state.spec.name,
        spec=state.spec.full_digest[:SPEC_DIGEST_CHARS],
        step=state.ledger.steps,
        model=state.chain.model,
        view=TranscriptView(
            pinned=_number(state.transcript.pinned),
            start=state.transcript.window_start,
            length=len(state.messages),
            unsent=_unsent_in_view(state.transcript),
        ),
        newest=fresh if small else [],
        tail=tail_digest(newest),
        max_tokens=command.allowance.max_tokens,
        reservation=command.allowance.reservation,
        tool_choice=command.tool_choice,
        note=command.note,
        result_tokens=state.transcript.result_tokens,
        offer_read_result=state.transcript.spilled,
        offer_read_back=offers_read_back(state),
        offer_handoff=bool(state.peers),
        stream=state.request.stream,
        user=state.request.user,
        force_once=state.parking.force_once,
        summary=summary_digest(state.transcript.summary),
        refused=state.transcript.refused,
    )


def summary_input(state: AgentState, command: Summarize) -> ModelInput:
    """Return the input of the call that summarizes: that of a step, with the index where the summary ends."""
    call = model_input(state, CallModel(allowance=command.allowance))
    # Its text is for the model, so watchers do not stream it.
    keeps = _number(request_before(state, command.stop))
    changes = {"summarize": command.stop, "keeps": keeps, "stream": False, "force_once": False}
    return call.model_copy(update=changes)


def _unsent_in_view(transcript: Transcript) -> list[int]:
    return [i for i in transcript.unsent if i >= transcript.window_start or i == transcript.pinned]


def _number(index: int | None) -> int:
    return 0 if index is None else index + 1


def model_summary(state: AgentState, chosen: ModelSpec) -> str:
    """Return the line that the UI shows for a model call."""
    tokens = _thousands(state.transcript.context_tokens)
    return f"step {state.ledger.steps} · {chosen.config.name} · reads {tokens} tokens"


def _thousands(count: int) -> str:
    return str(count) if count < 1000 else f"{count / 1000:.1f}k"
