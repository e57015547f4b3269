"""Agent: an immutable description of a model, its instructions, its tools and its bounds."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cached_property
from typing import Any, Generic, get_args

from perdure.context import ContextStrategy, SlidingWindow, Summary
from perdure.definitions import Definition, check_types
from perdure.errors import DefinitionError
from perdure.fallbacks import Fallback
from perdure.hooks import Hook, points_of
from perdure.instructions import Instructions
from perdure.limits import Limits
from perdure.mcp import McpServer, may_be_tool_of
from perdure.members import Member, collect_members
from perdure.model import ModelConfig
from perdure.outputs import Output, OutputForm, output_form
from perdure.policy import Policy
from perdure.prices import Price, PriceTable, shipped_prices
from perdure.providers.capabilities import capabilities_of
from perdure.providers.schemas import problem_with_tools
from perdure.tools import AgentTool, AnyTool, PersonTool, RemoteTool, Tool, as_tool
from perdure.wire.names import FINAL_ANSWER, HANDOFF, READ_BACK, READ_RESULT, UPDATE_PLAN
from perdure.wire.spec import AgentSpec, Collect, ModelSpec, OnFailure, ToolSpec

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_.-]{0,63}")
# Tools that the package adds by itself.
RESERVED_TOOL_NAMES = frozenset({FINAL_ANSWER, HANDOFF, READ_BACK, READ_RESULT, UPDATE_PLAN})


@dataclass(frozen=True, kw_only=True)
class Agent(Definition, Generic[Output]):
    """An agent.

    Making one raises DefinitionError for everything that could not run. With `limits.cost_usd`, every model
    of the chain needs a known price; that is checked when the agent is resolved.
    """

    name: str
    model: str | ModelConfig
    instructions: str | Instructions = ""
    """Text, or a function of an `InstructionsContext` that gives it, sync or async. The function is called when a run
    resolves, and the run keeps its text."""
    description: str = ""
    """Purpose of the agent in a line, for agents that call it or hand off to it."""
    tools: Sequence[AnyTool | McpServer] = ()
    fallbacks: Sequence[str | ModelConfig | Fallback] = ()
    """Models to try in order when the attempts of a model are used up. A `Fallback` adds conditions."""
    limits: Limits = Limits()
    policy: Policy | None = None
    """Rules for tool calls. None: every call is allowed; with `approval=True`, after a person allows it."""
    context: ContextStrategy = SlidingWindow()
    """Choice of what the model sees of a long transcript."""
    # `object` stands for unions and other types that no `type[...]` covers; annotate such an agent: Agent[int | str].
    output_type: type[Output] | object | None = None
    """Type that the run's output fits: any that pydantic can read, such as a model, `list[int]` or a union. None, as
    `str`: plain text."""
    output_repairs: int = 2
    """Number of times that the model may correct an output that does not fit `output_type`."""
    tool_concurrency: int = 8
    """Most tool calls of a run at the same time."""
    result_preview_bytes: int = 16_384
    """Bytes of a text result that the model sees. It reads the rest of a longer one by a tool."""
    on_failure: OnFailure = "park"
    """Reaction to a model call that has failed, if time or a person can remove the cause.

    "park": stop at this step and keep everything. "fail": end with the error. "answer": end as completed,
    with the newest text or with `fallback_message`; `RunResult.error` holds the cause.
    """
    fallback_message: str | None = None
    """Answer of a run that must end, by a limit, stop or failure, before its model said anything."""
    hooks: Sequence[Hook] = ()
    """Your code beside the run's calls, see `perdure.hooks`."""
    planning: bool = False
    """True: the model keeps a plan, which people see and which survives a cut of the conversation."""
    models: tuple[ModelConfig, ...] = field(init=False, repr=False)
    """The chain: `model`, then the models of `fallbacks`."""
    summary_model: ModelConfig | None = field(init=False, repr=False)
    """Model of `context=Summary(model=...)`."""

    def __post_init__(self) -> None:
        check_types(self, f"agent {self.name!r}")
        if not _NAME.fullmatch(self.name):
            raise DefinitionError(
                f"agent name {self.name!r}: use letters, digits, '_', '-' and '.', starting with a letter"
            )
        chain = tuple(self._model_config(_model_of(link)) for link in (self.model, *self.fallbacks))
        # The dataclass is frozen, and these fields are derived from others.
        object.__setattr__(self, "models", chain)
        named = self.context.model if isinstance(self.context, Summary) else None
        object.__setattr__(self, "summary_model", self._model_config(named) if named else None)
        object.__setattr__(self, "tools", self._check_tools())
        object.__setattr__(self, "hooks", self._check_hooks())
        if not isinstance(self.instructions, str) and not callable(self.instructions):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(
                f"agent {self.name!r}: instructions must be text, or a function that gives it, not "
                f"{self.instructions!r}"
            )
        self._check_bounds()
        self._check_models(self.output_schema())
        collect_members(self)  # raises for two different members of one name

    @property
    def all_models(self) -> tuple[ModelConfig, ...]:
        """Every model that its runs may call."""
        return self.models if self.summary_model is None else (*self.models, self.summary_model)

    @property
    def members(self) -> dict[str, Member]:
        """Agents, swarms and graphs among its tools, by name."""
        return {tool.member.name: tool.member for tool in self.tools if isinstance(tool, AgentTool)}

    @property
    def mcp_servers(self) -> tuple[McpServer, ...]:
        """MCP servers among its tools."""
        return tuple(tool for tool in self.tools if isinstance(tool, McpServer))

    def as_tool(
        self,
        name: str | None = None,
        description: str | None = None,
        *,
        collect: Collect = "all",
        approval: bool = False,
        timeout: timedelta | None = None,
        concurrency: int | None = 100,
    ) -> AgentTool:
        """Make a tool by which another agent's model calls this agent; see `AgentTool`."""
        return as_tool(
            self,
            name,
            description,
            collect=collect,
            approval=approval,
            timeout=timeout,
            concurrency=concurrency,
        )

    def _model_config(self, model: str | ModelConfig) -> ModelConfig:
        if isinstance(model, str):
            try:
                return ModelConfig(name=model)
            except DefinitionError:
                raise DefinitionError(
                    f"agent {self.name!r}: model {model!r}: "
                    'write it as "provider:model", such as "anthropic:claude-sonnet-5-5"'
                ) from None
        if not isinstance(model, ModelConfig):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(
                f"agent {self.name!r}: a model must be text or a ModelConfig, not {model!r}"
            )
        # Checked here and not in ModelConfig, so that the message can name the agent.
        if model.timeout <= timedelta():
            raise DefinitionError(
                f"agent {self.name!r}: model {model.name!r}: timeout must be positive, not {model.timeout!r}"
            )
        return model

    def _check_tools(self) -> tuple[AnyTool | McpServer, ...]:
        if not isinstance(self.tools, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"agent {self.name!r}: tools must be a list, not {self.tools!r}")
        tools = tuple(self.tools)
        seen: set[str] = set()
        for tool in tools:
            if not isinstance(tool, AnyTool | McpServer):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DefinitionError(
                    f"agent {self.name!r}: {tool!r} is not a tool; put @tool above the function"
                )
            if isinstance(tool, Tool) and tool.signature.is_method:
                raise DefinitionError(
                    f"agent {self.name!r}: tool {tool.name!r} is a method; take it from an object, as desk.{tool.name}"
                )
            if tool.name in seen:
                raise DefinitionError(f"agent {self.name!r}: two tools are called {tool.name!r}; rename one")
            if tool.name in RESERVED_TOOL_NAMES:
                raise DefinitionError(f"agent {self.name!r}: the tool name {tool.name!r} is reserved")
            seen.add(tool.name)
        for tool in tools:
            self._check_stand_in(tool)
        # A misspelt name would bound nothing.
        for name in self.limits.per_tool:
            if not may_be_tool_of(tools, name):
                raise DefinitionError(
                    f"agent {self.name!r}: limits.per_tool names {name!r}, which is not one of its tools"
                )
        return tools

    def _check_hooks(self) -> tuple[Hook, ...]:
        if not isinstance(self.hooks, Iterable):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise DefinitionError(f"agent {self.name!r}: hooks must be a list, not {self.hooks!r}")
        hooks = tuple(self.hooks)
        for hook in hooks:
            if not isinstance(hook, Hook):  # pyright: ignore[reportUnnecessaryIsInstance]
                raise DefinitionError(
                    f"agent {self.name!r}: {hook!r} is no hook; make an object of a subclass of Hook"
                )
        late = [
            tool.name for tool in self.tools if isinstance(tool, AgentTool) and tool.collect == "completion"
        ]
        # Such an answer is no result of a call, so no hook after the call would see it.
        if late and "after_tool" in points_of(hooks):
            raise DefinitionError(
                f"agent {self.name!r}: a hook after tool calls cannot see the answers of {', '.join(late)}; "
                'use collect="all"'
            )
        return hooks

    def _check_stand_in(self, tool: AnyTool | McpServer) -> None:
        if not isinstance(tool, Tool | RemoteTool) or tool.fallback is None or tool.fallback.tool is None:
            return
        name = tool.fallback.tool
        if not may_be_tool_of(self.tools, name):
            raise DefinitionError(
                f"agent {self.name!r}: tool {tool.name!r} falls back to {name!r}, "
                "which is not one of the agent's tools"
            )
        stand_in = next((tool for tool in self.tools if tool.name == name), None)
        if stand_in is None:
            return  # a tool of an MCP server: it is checked when a run resolves
        # The stand-in is called while the run waits for the failed call, so nothing else may hold it up.
        if not isinstance(stand_in, Tool | RemoteTool) or stand_in.approval:
            raise DefinitionError(
                f"agent {self.name!r}: tool {tool.name!r} falls back to {name!r}, which needs a person or an "
                "agent; a fallback must be a function without approval"
            )

    def _check_bounds(self) -> None:
        bounds = {
            "output_repairs": (self.output_repairs, 0),
            "tool_concurrency": (self.tool_concurrency, 1),
            "result_preview_bytes": (self.result_preview_bytes, 256),
        }
        if self.on_failure not in get_args(OnFailure):
            choices = ", ".join(get_args(OnFailure))
            raise DefinitionError(f"agent {self.name!r}: on_failure is {self.on_failure!r}; use {choices}")
        for name, (value, least) in bounds.items():
            if value < least:
                raise DefinitionError(f"agent {self.name!r}: {name} must be {least} or more, not {value!r}")

    def _check_models(self, output_schema: dict[str, Any] | None) -> None:
        """Refuse what the provider of a model would refuse at the first step of every run."""
        schemas = [
            (tool.name, tool.input_schema if isinstance(tool, Tool | RemoteTool) else {"type": "object"})
            for tool in self.tools
            if not isinstance(tool, McpServer)  # its tools are known, and checked, when a run resolves
        ]
        if output_schema is not None:
            schemas.append((FINAL_ANSWER, output_schema))
        for config in self.all_models:
            try:
                capabilities = capabilities_of(config)
            except DefinitionError as error:
                raise DefinitionError(f"agent {self.name!r}: {error}") from None
            # A model that writes summaries alone is offered no tools.
            problem = problem_with_tools(schemas if config in self.models else (), capabilities)
            if problem is not None:
                problem = problem.replace(f"tool {FINAL_ANSWER!r}", "output_type")
                raise DefinitionError(
                    f"agent {self.name!r}: {config.name} would refuse its tools: {problem}; change that, or, where "
                    'the model does take it, say so in ModelConfig(options={"capabilities": ...})'
                )

    @cached_property
    def output_form(self) -> OutputForm | None:
        """Form in which a model gives the output, or None for plain text."""
        return output_form(self.output_type, f"agent {self.name!r}")

    def output_schema(self) -> dict[str, Any] | None:
        """Return the JSON schema of what the model gives as its final answer, or None for plain text."""
        return self.output_form.schema if self.output_form else None

    def spec(
        self, *, prices: PriceTable | None = None, today: date | None = None, cost_limited: bool = False
    ) -> AgentSpec:
        """Return the agent as data, with the prices of the day.

        `cost_limited` says that a request bounds the cost, whatever the agent's own limits are.

        Raises:
            DefinitionError: the cost is bounded, and the price of a model is not known.

        """
        table = prices or shipped_prices()
        # Without a day, the newest price applies: the hash of a spec leaves prices out anyway.
        day = today or date.max
        models = tuple(
            _model_spec(config, link, table.find(config.name, day))
            for config, link in zip(self.models, (self.model, *self.fallbacks), strict=True)
        )
        summary = self.summary_model
        summary_spec = summary and ModelSpec(config=summary, price=table.find(summary.name, day))
        if cost_limited or self.limits.cost_usd is not None:
            self._check_prices([*models, summary_spec] if summary_spec else models)
        form = self.output_form
        # Fields of the same name go over as they are; only what a spec states otherwise is named here.
        stated_otherwise = {
            "models": models,
            "tools": tuple(_tool_spec(tool) for tool in self.tools if not isinstance(tool, McpServer)),
            "mcp_servers": tuple(server.name for server in self.mcp_servers),
            "instructions": self.instructions if isinstance(self.instructions, str) else "",
            "instructions_by": None if isinstance(self.instructions, str) else _name_of(self.instructions),
            "output_schema": self.output_schema(),
            "wraps_output": form is not None and form.is_wrapped,
            "output_name": getattr(self.output_type, "__name__", None),
            "hooks": points_of(tuple(self.hooks)),
            "summary_model": summary_spec,
        }
        return AgentSpec.model_validate({**vars(self), **stated_otherwise})

    def _check_prices(self, models: Sequence[ModelSpec]) -> None:
        unknown = [model.config.name for model in models if model.price is None]
        if unknown:
            raise DefinitionError(
                f"agent {self.name!r} has a cost limit, and the price of {', '.join(unknown)} is not known; "
                "add it to the table that PERDURE_PRICES points to"
            )


def _name_of(function: Any) -> str:
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def _model_of(link: str | ModelConfig | Fallback) -> str | ModelConfig:
    return link.model if isinstance(link, Fallback) else link


def _model_spec(config: ModelConfig, link: str | ModelConfig | Fallback, price: Price | None) -> ModelSpec:
    if not isinstance(link, Fallback):
        return ModelSpec(config=config, price=price)
    least = link.least_cost_left_usd
    return ModelSpec(
        config=config,
        price=price,
        # Sorted: a set's order differs from process to process, and the digest of the spec must not.
        on=None if link.on is None else tuple(sorted(link.on)),
        sticky=link.sticky,
        least_cost_left_microusd=None if least is None else round(least * 1_000_000),
        instructions=link.instructions,
    )


def _schema_of_text(name: str, description: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {name: {"type": "string", "description": description}},
        "required": [name],
        "additionalProperties": False,
    }


def _tool_spec(tool: AnyTool) -> ToolSpec:
    """Return the tool as data: its fields of the same name, and what its kind adds to them."""
    fields = dict(vars(tool))
    match tool:
        case PersonTool():
            fields |= {"kind": "person", "input_schema": _schema_of_text("question", "What to ask.")}
        case AgentTool():
            fields |= {
                "kind": "agent",
                "input_schema": _schema_of_text("input", "What it is to do, with all it needs to know."),
                "agent": tool.member.name,
                "agent_hash": tool.member.spec().hash,
                # A spec's `timeout` bounds one attempt of an activity; a run of an agent is none.
                "deadline": fields.pop("timeout"),
            }
        case RemoteTool():
            fields |= {"kind": "remote", "activity": tool.activity or tool.name}
        case Tool():
            fields["kind"] = "function"
    return ToolSpec.model_validate(fields)
