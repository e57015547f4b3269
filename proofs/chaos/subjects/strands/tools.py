"""Tools as activities: one for each function of the set."""

import inspect
import os
from pathlib import Path
from typing import Any

import httpx
from temporalio import activity

from proofs.chaos.catalogue import PLAIN, load
from proofs.chaos.subjects import TOOL_TIMEOUT_SECONDS

_HTTP = httpx.AsyncClient(
    base_url=os.environ["CHAOS_TOOLS"],
    timeout=TOOL_TIMEOUT_SECONDS + 60.0,
    headers={"X-Worker": os.environ["CHAOS_WORKER"]},
)


def _build_activity(document: dict[str, Any]) -> Any:
    name = document["name"]
    hints = {
        key: _hint(value, key, document["schema"]) for key, value in document["schema"]["properties"].items()
    }
    # Optional parameters come last, as in any Python function.
    required = document["schema"].get("required", [])
    order = sorted(hints, key=lambda key: key not in required)

    async def call(*values: Any) -> str:
        info = activity.info()
        arguments = {key: value for key, value in zip(order, values, strict=True) if value is not None}
        answer = await _HTTP.post(
            "/call",
            json={"task": info.workflow_id, "name": name, "arguments": arguments},
            headers={"Idempotency-Key": f"{info.workflow_run_id}/{info.activity_id}"},
        )
        answer.raise_for_status()
        return answer.text

    empty = inspect.Parameter.empty
    function: Any = call
    function.__name__ = function.__qualname__ = name
    function.__doc__ = document["description"]
    function.__signature__ = inspect.Signature(
        [
            inspect.Parameter(
                key,
                inspect.Parameter.POSITIONAL_OR_KEYWORD,
                annotation=hints[key],
                default=empty if key in required else None,
            )
            for key in order
        ],
        return_annotation=str,
    )
    function.__annotations__ = {**hints, "return": str}
    return activity.defn(function)


def _hint(schema: dict[str, Any], name: str, parent: dict[str, Any]) -> Any:
    kind = schema.get("type")
    if isinstance(kind, list):
        plain: Any = int | str
    elif kind == "array":
        plain = list[PLAIN.get(schema.get("items", {}).get("type"), Any)]
    else:
        plain = PLAIN.get(str(kind), Any)
    return plain if name in parent.get("required", []) else plain | None


CATALOGUE = load(Path(os.environ["CHAOS_CATALOGUE"]))
TOOLS = {tool["name"]: _build_activity(tool) for tools in CATALOGUE.tools.values() for tool in tools}
