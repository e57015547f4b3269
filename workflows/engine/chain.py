"""Which model of the chain is asked next, when one has given up or is too dear. Pure.

Rules
1. The chain is tried in order, and nobody in it twice for one step.
2. A fallback says on what it is taken; without that, on every error that falls back.
3. A sticky one answers from there on. After one that is not, the next step begins again with the
   model that was settled on.
"""

from dataclasses import replace

from perdure.errors import rule_for
from perdure.fallbacks import COST_BUDGET
from perdure.wire.spec import ModelSpec

from .account import room
from .amounts import missing
from .budget import LEAST_REPLY_TOKENS, call_amount
from .state import State


def following(state: State, kind: str) -> int | None:
    """The model to ask after an error of this kind; None: there is none."""
    return next((i for i in _after(state) if _is_taken_on(state.spec.models[i], kind)), None)


def cheaper(state: State) -> int | None:
    """A model that the money left still pays for, when it does not pay for the one in use."""
    return next((i for i in _after(state) if _is_affordable(state, i)), None)


def taken(state: State, index: int) -> State:
    """With that model in use."""
    state = replace(state, model=index)
    return replace(state, settled=index) if state.spec.models[index].sticky else state


def back(state: State) -> State:
    """After a step was answered: the next one begins with the model that was settled on."""
    # Runs of 0.1.0 carry no `settled`; all of their fallbacks are sticky.
    return state if state.spec.models[state.model].sticky else replace(state, model=state.settled)


def _after(state: State) -> list[int]:
    left = room(state).cost_microusd
    return [
        index
        for index in range(state.model + 1, len(state.spec.models))
        if left is None or left >= (state.spec.models[index].least_cost_left_microusd or 0)
    ]


def _is_taken_on(model: ModelSpec, kind: str) -> bool:
    return rule_for(kind).falls_back if model.on is None else kind in model.on


def _is_affordable(state: State, index: int) -> bool:
    if COST_BUDGET not in (state.spec.models[index].on or ()):
        return False
    return missing(call_amount(replace(state, model=index), LEAST_REPLY_TOKENS), room(state)) is None
