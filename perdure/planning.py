"""Planning: the plan that a model keeps of its own work, and its texts for the model and for people.

Each call of the tool replaces the whole plan: so the model and the run cannot disagree about which item is
which.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from perdure.definitions import explain
from perdure.model import ToolDefinition
from perdure.wire.names import UPDATE_PLAN
from perdure.wire.results import PlanItem

MOST_ITEMS: Final = 50
MOST_CHARACTERS: Final = 500
"""Most characters of an item's text."""

PLAN_TOOL: Final = ToolDefinition(
    name=UPDATE_PLAN,
    description=(
        "Write down your plan for this task, and keep it up to date: people follow it, and you are "
        "reminded of it. Give the whole plan each time; it replaces the one before. Mark an item "
        "in_progress when you begin it and done as soon as it is done, and drop what is not needed any more."
    ),
    input_schema={
        "type": "object",
        "properties": {
            "items": {
                "type": "array",
                "maxItems": MOST_ITEMS,
                "description": "The whole plan, in the order in which you go about it.",
                "items": {
                    "type": "object",
                    "properties": {
                        "text": {
                            "type": "string",
                            "minLength": 1,
                            "maxLength": MOST_CHARACTERS,
                            "description": "What is to be done, in one line.",
                        },
                        "state": {
                            "type": "string",
                            "enum": ["pending", "in_progress", "done", "dropped"],
                        },
                    },
                    "required": ["text", "state"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["items"],
        "additionalProperties": False,
    },
)
"""Definition of the tool for the model."""

_BOXES: Final = {"pending": "[ ]", "in_progress": "[~]", "done": "[x]", "dropped": "[-]"}


# A line break would let an item look like two in the checklist.
def _one_line(text: Any) -> Any:
    return " ".join(text.split()) if isinstance(text, str) else text


class _Item(PlanItem):
    model_config = ConfigDict(extra="forbid")

    text: Annotated[str, Field(min_length=1, max_length=MOST_CHARACTERS), BeforeValidator(_one_line)]


# `PlanItem` ignores unknown fields, as all wire values do; a model must learn of its slip.
class _Plan(BaseModel):
    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[_Item], Field(max_length=MOST_ITEMS)]


def plan_of(arguments: dict[str, Any]) -> tuple[PlanItem, ...]:
    """Return the plan in a call's arguments: each text on one line, items without a state pending.

    Raises:
        ValueError: the arguments do not fit; the message tells the model which field, and why.

    """
    try:
        plan = _Plan.model_validate(arguments)
    except ValidationError as error:
        raise ValueError(f"the plan was not changed: {explain(error)}") from None
    return tuple(PlanItem(text=item.text, state=item.state) for item in plan.items)


def plan_checklist(items: Sequence[PlanItem]) -> str:
    """Return the plan as a Markdown checklist, for people; empty for an empty plan."""
    return "\n".join(f"- {_BOXES[item.state]} {item.text}" for item in items)


def plan_reminder(items: Sequence[PlanItem]) -> str:
    """Return the plan for a model that may no longer see its last call of the tool; empty without one."""
    if not items:
        return ""
    key = "[x] done, [~] in progress, [ ] pending, [-] dropped"
    return f"Your plan, as you last gave it to {UPDATE_PLAN} ({key}):\n{plan_checklist(items)}"


def plan_receipt(items: Sequence[PlanItem]) -> str:
    """Return the tool's result for the model: the progress of the plan, and its next item."""
    if not items:
        return "The plan is empty."
    # Dropped items count neither as done nor as work left.
    kept = [item for item in items if item.state != "dropped"]
    done = sum(item.state == "done" for item in kept)
    dropped = f", {len(items) - len(kept)} dropped" if len(kept) < len(items) else ""
    return f"{done} of {len(kept)} done{dropped}; {_next(kept)}"


def _next(items: Sequence[PlanItem]) -> str:
    for state in ("in_progress", "pending"):
        found = next((item.text for item in items if item.state == state), None)
        if found is not None:
            return f"next: {found}"
    return "nothing is left"
