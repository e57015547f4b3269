"""Tools: what their signatures become, and what is refused when they are made."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from enum import Enum
from functools import partial
from typing import Annotated, Any, Literal
from uuid import UUID

import pytest
from pydantic import BaseModel, ConfigDict, Field
from typing_extensions import TypedDict

from perdure.errors import DefinitionError
from perdure.retries import ToolRetry
from perdure.schema import check_schema, problem_with
from perdure.tools import PersonTool, RemoteTool, Tool, ToolContext, ask_person, tool


class Colour(Enum):
    RED = "red"
    BLUE = "blue"


class Place(BaseModel):
    city: str
    zip_code: str = Field(default="", alias="zip")


class Strict(BaseModel):
    model_config = ConfigDict(strict=True)
    when: datetime
    colour: Colour


@dataclass
class Point:
    x: int
    y: int = 0


class Options(TypedDict, total=False):
    deep: bool


def made(function: Callable[..., Any], **settings: Any) -> Tool:
    function.__doc__ = function.__doc__ or "Do it."
    return tool(**settings)(function)


def properties(one: Tool) -> dict[str, Any]:
    found: dict[str, Any] = one.input_schema["properties"]
    return found


@pytest.mark.parametrize(
    ("hint", "given", "value"),
    [
        (str, "a", "a"),
        (int, 3, 3),
        (float, 3, 3.0),
        (bool, True, True),
        (str | None, None, None),
        (list[int], [1, 2], [1, 2]),
        (dict[str, int], {"a": 1}, {"a": 1}),
        (dict, {"a": [1]}, {"a": [1]}),
        (set[str], ["a"], {"a"}),
        (tuple[int, str], [1, "a"], (1, "a")),
        (Literal["a", "b"], "b", "b"),
        (Colour, "red", Colour.RED),
        (Place, {"city": "Bonn", "zip": "53"}, Place(city="Bonn", zip="53")),
        (list[Place], [{"city": "Bonn"}], [Place(city="Bonn")]),
        (Point, {"x": 1}, Point(1)),
        (Options, {"deep": True}, {"deep": True}),
        (datetime, "2026-11-20T12:00:00Z", datetime(2026, 11, 20, 12, tzinfo=UTC)),
        (date, "2026-11-20", date(2026, 11, 20)),
        (timedelta, "PT5S", timedelta(seconds=5)),
        (UUID, "12345678-1234-5678-1234-567812345678", UUID("12345678-1234-5678-1234-567812345678")),
        (Annotated[int, Field(ge=1)], 1, 1),
        (Strict, {"when": "2026-11-20T12:00:00Z", "colour": "red"}, None),
        (Any, {"x": [None]}, {"x": [None]}),
    ],
)
def test_json_becomes_hinted_value(hint: Any, given: Any, value: Any) -> None:
    def work(thing: Any) -> None: ...

    work.__annotations__["thing"] = hint
    one = made(work)
    assert problem_with({"thing": given}, one.input_schema) is None
    bound = one.signature.bind({"thing": given})
    if value is None and hint is Strict:
        value = Strict(when=datetime(2026, 11, 20, 12, tzinfo=UTC), colour=Colour.RED)
    assert bound == {"thing": value}


def test_schema_is_strict_and_documented() -> None:
    @tool
    def search(
        query: str,
        most: Annotated[int, Field(ge=1, description="from the hint")] = 5,
        *,
        exact: bool = False,
    ) -> list[str]:
        """Search the shop.

        Newest first.

        Args:
            query: What to look for.
            exact: Word for word.

        Returns:
            Names.
        """
        return []

    assert search.description == "Search the shop.\n\nNewest first."
    assert search.input_schema["required"] == ["query"]
    assert search.input_schema["additionalProperties"] is False
    assert properties(search) == {
        "query": {"description": "What to look for.", "title": "Query", "type": "string"},
        "most": {
            "default": 5,
            "description": "from the hint",
            "minimum": 1,
            "title": "Most",
            "type": "integer",
        },
        "exact": {"default": False, "description": "Word for word.", "title": "Exact", "type": "boolean"},
    }
    assert search.signature.bind({"query": "x"}) == {"query": "x", "most": 5, "exact": False}
    assert problem_with({"query": "x", "more": 1}, search.input_schema) is not None


@pytest.mark.parametrize(
    "doc",
    [
        "Do it.\n\nArgs:\n    n: How many.\n",
        "Do it.\n\nParameters\n----------\nn : int\n    How many.\n",
        "Do it.\n\n:param n: How many.\n",
        "Do it.\n\n@param n: How many.\n",
    ],
)
def test_docstring_styles_are_understood(doc: str) -> None:
    def work(n: int) -> None: ...

    work.__doc__ = doc
    one = made(work)
    assert one.description == "Do it."
    assert properties(one)["n"]["description"] == "How many."


def test_parameters_may_shadow_pydantic_methods() -> None:
    def post(json: dict[str, Any], copy: int = 1, model_dump: str = "", model_config: int = 0) -> None: ...

    one = made(post)
    assert list(properties(one)) == ["json", "copy", "model_dump", "model_config"]
    assert properties(one)["json"]["title"] == "Json"
    bound = one.signature.bind({"json": {"a": 1}, "model_dump": "x"})
    assert bound == {"json": {"a": 1}, "copy": 1, "model_dump": "x", "model_config": 0}
    with pytest.raises(ValueError, match="json: Input should be an object"):
        one.signature.bind({"json": 3})


def test_context_is_hidden_from_model() -> None:
    def work(n: int, where: ToolContext) -> None: ...

    one = made(work)
    assert list(properties(one)) == ["n"]
    assert one.signature.context == "where"


def test_sync_and_async_stay_callable() -> None:
    @tool
    async def later(n: int) -> int:
        """Later."""
        return n

    @tool
    def now(n: int) -> int:
        """Now."""
        return n + 1

    assert later.is_async
    assert not now.is_async
    assert now(1) == 2


def test_default_set_order_is_stable() -> None:
    def work(tags: frozenset[str] = frozenset({"d", "a", "c", "b"})) -> None: ...

    assert properties(made(work))["tags"]["default"] == ["a", "b", "c", "d"]


def unhinted(n) -> None:  # type: ignore[no-untyped-def]  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    """Do it."""


def many(*n: int) -> None:
    """Do it."""


def named(**n: int) -> None:
    """Do it."""


def placed(n: int, /) -> None:
    """Do it."""


def placed_context(c: ToolContext, /) -> None:
    """Do it."""


def twice(a: ToolContext, b: ToolContext) -> None:
    """Do it."""


def hidden(_n: int) -> None:
    """Do it."""


def callback(n: Callable[[int], int]) -> None:
    """Do it."""


def bare(n: int = Field(3, ge=1)) -> None:
    """Do it."""


def lost(n: "Nowhere") -> None:  # type: ignore[name-defined]  # noqa: F821  # pyright: ignore[reportUndefinedVariable, reportUnknownParameterType]
    """Do it."""


def broken(n: "in t(") -> None:  # type: ignore[valid-type]  # noqa: F722  # pyright: ignore[reportGeneralTypeIssues]
    """Do it."""


def silent(n: int) -> None: ...


class Machine:
    """A thing that can be called."""

    def __call__(self, n: int) -> None:
        """Do it."""


REFUSED: list[tuple[Any, str]] = [
    (unhinted, "'n' has no type hint"),
    (many, "'n' is variadic positional"),
    (named, "'n' is variadic keyword"),
    (placed, "'n' is positional-only"),
    (placed_context, "'c' is positional-only"),
    (twice, "'a' and 'b' are both ToolContext"),
    (hidden, "'_n' must not start with '_'"),
    (callback, "'n' has a type no JSON value can fill"),
    (bare, "'n' has a Field for its default; write Annotated"),
    (lost, "a type hint cannot be resolved: name 'Nowhere'"),
    (broken, "a type hint cannot be resolved"),
    (silent, "has no docstring"),
    (Machine(), "a type hint cannot be resolved"),
    (partial(silent, 3), "a type hint cannot be resolved"),
]


@pytest.mark.parametrize(("function", "why"), REFUSED)
def test_uncallable_function_is_rejected(function: Any, why: str) -> None:
    with pytest.raises(DefinitionError, match=why):
        tool(function)


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"name": "has space"}, "use letters, digits"),
        ({"name": "1st"}, "starting with a letter"),
        ({"name": "x" * 65}, "at most 64"),
        ({"name": "line\n"}, "use letters, digits"),
        ({"timeout": timedelta()}, "timeout must be positive"),
        ({"heartbeat": timedelta(seconds=-1)}, "heartbeat must be positive"),
        ({"concurrency": 0}, "concurrency must be 1 or more"),
        ({"resource": "order"}, "resource 'order' is not one of its parameters"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], why: str) -> None:
    def work(n: int) -> None: ...

    with pytest.raises(DefinitionError, match=why):
        made(work, **settings)
    if "name" not in settings:
        with pytest.raises(DefinitionError, match=why):
            RemoteTool(
                name="far", description="x", input_schema={"type": "object"}, task_queue="q", **settings
            )


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"attempts": 0}, "attempts must be 1 or more"),
        ({"backoff": 0.5}, "backoff must be 1 or more"),
        ({"initial_interval": timedelta()}, "initial_interval must be positive"),
        ({"initial_interval": timedelta(minutes=1)}, "is less than initial_interval"),
    ],
)
def test_invalid_retries_are_rejected_early(settings: dict[str, Any], why: str) -> None:
    """Retries that Temporal would reject are rejected before a run hangs on them."""
    with pytest.raises(DefinitionError, match=why):
        ToolRetry(**settings)


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"type": "string"}, "must be 'object', not 'string'"),
        ({}, "must be 'object', not None"),
        ({"type": "object", "properties": 3}, "not a valid JSON schema"),
        ({"type": "object", "properties": {"a": {"$ref": "#/$defs/x"}}}, "refers to '#/\\$defs/x'"),
        ({"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}, "which is not in it"),
    ],
)
def test_incomplete_schema_is_rejected(schema: dict[str, Any], why: str) -> None:
    with pytest.raises(DefinitionError, match=why):
        check_schema(schema, "tool 'x'")


def test_a_schema_may_refer_to_itself() -> None:
    node = {"type": "object", "properties": {"next": {"$ref": "#/$defs/node"}}}
    schema = {**node, "$defs": {"node": node}}
    check_schema(schema, "x")
    assert problem_with({"next": {"next": 3}}, schema) == "next.next: 3 is not of type 'object'"


def test_foreign_pattern_is_left_to_function() -> None:
    def work(name: Annotated[str, Field(pattern=r"^\p{Lu}")]) -> None: ...

    one = made(work)
    assert problem_with({"name": "low"}, one.input_schema) is None
    assert one.signature.bind({"name": "High"}) == {"name": "High"}
    with pytest.raises(ValueError, match="name: String should match pattern"):
        one.signature.bind({"name": "low"})


def test_a_remote_tool_needs_a_description() -> None:
    with pytest.raises(DefinitionError, match="'far' has no description"):
        RemoteTool(name="far", description=" ", input_schema={"type": "object"}, task_queue="q")


def test_question_to_person_is_a_tool() -> None:
    assert isinstance(ask_person, PersonTool)
    assert ask_person.name == "ask_person"
