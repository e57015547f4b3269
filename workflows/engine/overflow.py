"""Overflow: the provider says that a request does not fit the model. What is at fault is made smaller.

Rules
1. The next model of the chain goes first, if it takes over on an overflow.
2. Results of one step that are most of what the model reads are shown shorter: their bound is halved.
3. Otherwise the window is cut by half, as the agent's context strategy does it: with a summary, if it has one. Where
   it cannot move, results are shortened all the same.
4. Where nothing helps, the run ends. It says so: with the newest words of the model, the agent's own words for this
   case, or the provider's. The provider's words stand in the error of the result in any case.
5. A run below fails by it, unless its agent answers in spite of failures: nobody above must take the provider's words
   for the answer of a node, or of a tool.

A reply bound that is too large for the context never comes here: the activity makes it smaller by itself.
"""

from dataclasses import replace

from perdure.fitting import LEAST_SHOWN_TOKENS

from . import parking
from .ends import early_end, failure_of
from .input_tokens import newest_results, result_bound, shown_tokens, visible_tokens
from .state import AgentState, End
from .step import offer_rest
from .window import half_window_start

MOST_CUTS = 8
"""Cuts in a row after overflows. Each halves something, so more would not help."""
REPLY_OVERFLOWED = "the reply ran into the end of the model's context"


def fold_overflow(state: AgentState, words: str) -> AgentState:
    """Return the state that asks for the same step with less to read, or its end."""
    larger = parking.with_next_model(state, "context_overflow", words)
    if larger is not None:
        return larger
    smaller = _with_less(state) if state.step.overflow_cuts < MOST_CUTS else None
    if smaller is None:
        return replace(state, end=_end(state, words))
    step = replace(smaller.step, overflow_cuts=state.step.overflow_cuts + 1)
    return _keep_words(replace(smaller, step=step), words)


def _with_less(state: AgentState) -> AgentState | None:
    """Return the state in which the model is shown less, or None when there is nothing to leave out."""
    results, visible = newest_results(state), state.transcript.visible
    mostly_results = 2 * shown_tokens(state, results) > shown_tokens(state, visible)
    if mostly_results:
        return _with_shorter_results(state) or _with_half_window(state)
    return _with_half_window(state) or _with_shorter_results(state)


def _with_half_window(state: AgentState) -> AgentState | None:
    """Return the state whose window must move, before the model is asked again."""
    start = half_window_start(state)
    if start <= state.transcript.window_start:
        return None
    return replace(state, step=replace(state.step, cut_to=start))


def _with_shorter_results(state: AgentState) -> AgentState | None:
    results = newest_results(state)
    texts = sum(sum(message.result_tokens) for message in results)
    bound = min(texts, result_bound(state)) // 2
    shorter = replace(state, transcript=replace(state.transcript, result_tokens=bound))
    if bound < LEAST_SHOWN_TOKENS or shown_tokens(shorter, results) >= shown_tokens(state, results):
        return None
    # Both are upper bounds, as when the window moves.
    tokens = min(state.transcript.context_tokens, visible_tokens(shorter))
    shorter = replace(shorter, transcript=replace(shorter.transcript, context_tokens=tokens))
    return offer_rest(shorter, cut=True)


def _keep_words(state: AgentState, words: str) -> AgentState:
    """Return the state with the provider's words for the record of the step's reply."""
    name = state.spec.models[state.chain.model].config.name
    line = f"{name}: context_overflow: {words}"
    if line in state.chain.tried:
        return state
    return replace(state, chain=replace(state.chain, tried=(*state.chain.tried, line)))


def _end(state: AgentState, words: str) -> End:
    end = early_end(state, "context_overflow")
    answers = state.tree.lineage is None or state.spec.on_failure == "answer"
    if answers and not end.output and state.spec.output_schema is None:
        end = replace(end, output=f"The conversation does not fit the model: {words}")
    return replace(end, failure=failure_of(state, "context_overflow", words), answers=answers)
