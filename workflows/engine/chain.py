"""Chain of models: which model is asked next, when one has failed or costs too much.

Rules
1. The chain is tried in order, and no model in it twice for one step.
2. A fallback names the errors on which it is taken; without names, it is taken on every error that falls back.
3. A sticky fallback answers from there on. After one that is not sticky, the next step begins with the base model.
"""

from dataclasses import replace

from perdure.errors import rule_for
from perdure.fallbacks import COST_BUDGET
from perdure.wire.spec import ModelSpec

from .account import room
from .amounts import missing
from .budget import LEAST_REPLY_TOKENS, call_amount
from .state import AgentState
from .step import offer_rest_if_cut


def next_model(state: AgentState, kind: str) -> int | None:
    """Return the index of the model to ask after an error of this kind, or None."""
    return next((i for i in _later_models(state) if _takes_over_on(state.spec.models[i], kind)), None)


def cheaper_model(state: AgentState) -> int | None:
    """Return the index of a model that the money left pays for, when it does not pay for the one in use."""
    return next((i for i in _later_models(state) if _is_affordable(state, i)), None)


def use_model(state: AgentState, index: int) -> AgentState:
    """Return the state with that model in use."""
    # After a model that is not sticky the chain goes back to the base, which is kept.
    base = index if state.spec.models[index].sticky else state.chain.base_model
    return offer_rest_if_cut(replace(state, chain=replace(state.chain, model=index, base_model=base)))


def use_base_model(state: AgentState) -> AgentState:
    """Return the state after a step was answered: the next one begins with the base model."""
    if state.spec.models[state.chain.model].sticky:
        return state
    return offer_rest_if_cut(replace(state, chain=replace(state.chain, model=state.chain.base_model)))


def _later_models(state: AgentState) -> list[int]:
    # Forward only: a model that has failed in this step is not asked again in it.
    money = room(state).cost_microusd
    return [
        index
        for index in range(state.chain.model + 1, len(state.spec.models))
        if money is None or money >= (state.spec.models[index].least_cost_left_microusd or 0)
    ]


def _takes_over_on(model: ModelSpec, kind: str) -> bool:
    return rule_for(kind).falls_back if model.on is None else kind in model.on


def _is_affordable(state: AgentState, index: int) -> bool:
    # Only a fallback that names the budget is taken for it: others are for errors, and may be dearer.
    if COST_BUDGET not in (state.spec.models[index].on or ()):
        return False
    with_model = replace(state, chain=replace(state.chain, model=index))
    return missing(call_amount(with_model, LEAST_REPLY_TOKENS), room(state)) is None
