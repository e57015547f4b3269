"""Pinning: the tools of MCP servers as parts of a run's spec, when the run resolves.

A run whose servers do not offer what its agents need cannot begin: it waits, with the reason in words, and is tried
again. Tools that the agent names must be there and usable. Of those that it takes with "*", the unusable are left out,
with a line in the log.
"""

import asyncio
import hashlib
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from temporalio.exceptions import ApplicationError

from perdure.agent import RESERVED_TOOL_NAMES, Agent
from perdure.errors import DefinitionError
from perdure.mcp import McpServer, McpTool
from perdure.members import Member
from perdure.providers.capabilities import capabilities_of
from perdure.providers.schemas import problem_with_tools
from perdure.schema import check_schema
from perdure.wire.names import MCP_NOT_READY
from perdure.wire.spec import AgentSpec, AnySpec, McpSource, ResolvedAgent, ToolSpec

from ..content.redact import redact_and_cut
from .errors import McpNotReady
from .listed import ListedTool
from .pool import McpPool

_log = logging.getLogger("perdure.mcp")
_LIST_WITHIN: Final = 7.0
"""Seconds for all servers: the activity has ten. A server that starts longer goes on starting meanwhile."""
_LONGEST_NAME: Final = 64
_HASH_CHARS: Final = 8
_STAND_INS: Final = ("function", "remote", "mcp")


@dataclass(frozen=True, kw_only=True)
class McpPins:
    """Pinning of tools by this worker's definitions."""

    members: Mapping[str, Member]
    pool: McpPool = field(default_factory=McpPool)

    def has_servers(self, names: Iterable[str]) -> bool:
        """Check whether an agent of these names, as this worker defines it, has MCP servers."""
        return any(self._servers(name) for name in names)

    async def pin(self, resolved: ResolvedAgent) -> ResolvedAgent:
        """Return the specs with the tools of their servers.

        Raises:
            ApplicationError: "McpServerNotReady", in words for people; the run asks again.

        """
        specs = (resolved.spec, *resolved.members)
        wanted = {server.place: server for spec in specs for server in self._servers(spec.name)}
        if not wanted:
            return resolved
        try:
            listings = await self._list(list(wanted.values()))
            pinned = [self._pin_spec(spec, listings) for spec in specs]
            _check_limits(pinned)
        except McpNotReady as error:
            message = redact_and_cut(str(error), 2000)
            # Not retried by Temporal: the run itself tries again, and says why it waits.
            raise ApplicationError(message, type=MCP_NOT_READY, non_retryable=True) from None
        return resolved.model_copy(update={"spec": pinned[0], "members": tuple(pinned[1:])})

    def _servers(self, name: str) -> tuple[McpServer, ...]:
        member = self.members.get(name)
        return member.mcp_servers if isinstance(member, Agent) else ()

    async def _list(self, servers: Sequence[McpServer]) -> dict[Any, Sequence[ListedTool]]:
        asked = [asyncio.create_task(self._list_in_time(server)) for server in servers]
        answers = await asyncio.gather(*asked, return_exceptions=True)
        problems = [str(answer) for answer in answers if isinstance(answer, McpNotReady)]
        if problems:
            raise McpNotReady("; ".join(problems))
        listings: dict[Any, Sequence[ListedTool]] = {}
        for server, answer in zip(servers, answers, strict=True):
            if isinstance(answer, BaseException):
                raise answer
            listings[server.place] = answer
        return listings

    async def _list_in_time(self, server: McpServer) -> Sequence[ListedTool]:
        try:
            async with asyncio.timeout(_LIST_WITHIN):
                return await self.pool.list_tools(server)
        except TimeoutError:
            raise McpNotReady(
                f"MCP server {server.name!r} has not listed its tools within {_LIST_WITHIN:g} seconds; "
                "it may still be starting"
            ) from None

    def _pin_spec(self, spec: AnySpec, listings: Mapping[Any, Sequence[ListedTool]]) -> AnySpec:
        servers = self._servers(spec.name)
        if not isinstance(spec, AgentSpec) or not servers:
            return spec
        tools = list(spec.tools)
        for server in servers:
            tools += _pin_server(server, listings[server.place], {tool.name for tool in tools}, spec)
        _check_together(spec, tools)
        return spec.model_copy(update={"tools": tuple(tools)})


def _pin_server(
    server: McpServer, listing: Sequence[ListedTool], taken: set[str], spec: AgentSpec
) -> list[ToolSpec]:
    pinned: list[ToolSpec] = []
    names = taken | RESERVED_TOOL_NAMES
    for tool in _choose_tools(server, listing):
        entry = server.settings.get(tool.name)
        try:
            made = _tool_spec(server, tool, entry or McpTool(tool.name), names)
            _check_for_models(spec, [made])
        except DefinitionError as error:
            if entry is not None:
                raise McpNotReady(f"MCP server {server.name!r}: {error}") from None
            _log.warning("MCP server %r: its tool is left out: %s", server.name, error)
            continue
        names.add(made.name)
        pinned.append(made)
    return pinned


def _choose_tools(server: McpServer, listing: Sequence[ListedTool]) -> list[ListedTool]:
    """Return the tools that the agent has: those it names in its order, then the rest by name."""
    listed = {tool.name: tool for tool in listing}
    missing = [name for name in server.settings if name not in listed]
    if missing:
        known = ", ".join(sorted(listed)) or "none"
        raise McpNotReady(f"MCP server {server.name!r} has no tool {missing[0]!r}; it has: {known}")
    chosen = [listed[name] for name in server.settings]
    if server.offers_all:
        # By name: a server may list in any order, and the order is part of the spec's hash.
        chosen += [listed[name] for name in sorted(listed) if name not in server.settings]
    return chosen


def _tool_spec(server: McpServer, tool: ListedTool, entry: McpTool, taken: set[str]) -> ToolSpec:
    name = _name_for(server, tool.name, taken)
    check_schema(tool.schema, f"tool {tool.name!r}")
    if entry.resource is not None and entry.resource not in tool.schema.get("properties", {}):
        raise DefinitionError(f"tool {tool.name!r}: resource {entry.resource!r} is not one of its parameters")
    effect = entry.effect or _decide(server, "effect", server.effect, tool)
    approval = (
        _decide(server, "approval", server.approval, tool) if entry.approval is None else entry.approval
    )
    if effect not in ("read", "write"):
        raise DefinitionError(f"tool {tool.name!r}: effect gives {effect!r}; it must give read or write")
    fallback = entry.fallback
    if fallback is not None and fallback.remembered is not None and effect == "write":
        raise DefinitionError(f"tool {tool.name!r}: fallback.remembered does not work for a tool that writes")
    concurrency = entry.concurrency if entry.concurrency is not None else server.concurrency
    return ToolSpec(
        kind="mcp",
        name=name,
        description=tool.description,
        input_schema=tool.schema,
        effect=effect,
        approval=bool(approval),
        resource=entry.resource,
        timeout=entry.timeout or server.timeout,
        heartbeat=server.heartbeat,
        retry=entry.retry or server.retry,
        concurrency=concurrency,
        fallback=fallback,
        polls=entry.polls,
        mcp=McpSource(
            server=server.name,
            tool=tool.name,
            digest=tool.digest,
            hints=tool.claims,
            repeatable=server.repeatable,
        ),
    )


def _decide(server: McpServer, what: str, decision: Any, tool: ListedTool) -> Any:
    """Return a setting of the server, which may be the user's function of the tool's description."""
    if not callable(decision):
        return decision
    try:
        return decision(tool.info)
    except Exception as error:
        raise McpNotReady(
            f"MCP server {server.name!r}: the function {what}= fails for {tool.name!r}: "
            f"{type(error).__name__}: {error}"
        ) from None


def _name_for(server: McpServer, own: str, taken: set[str]) -> str:
    """Return the name by which the model calls the tool: unique, and in the form that every provider takes."""
    plain = re.sub(r"[^a-zA-Z0-9_-]", "_", f"{server.tool_prefix}{own}")
    if not re.match(r"[a-zA-Z]", plain):
        plain = f"t{plain}"
    if len(plain) <= _LONGEST_NAME and plain not in taken and plain == f"{server.tool_prefix}{own}":
        return plain
    # Two names that differ in a sign which no provider takes must not become one.
    mark = hashlib.sha256(f"{server.name}\0{own}".encode()).hexdigest()[:_HASH_CHARS]
    name = f"{plain[: _LONGEST_NAME - _HASH_CHARS - 1]}_{mark}"
    if name in taken:
        raise DefinitionError(f"tool {own!r}: its name for the model, {name!r}, is taken")
    return name


def _check_for_models(spec: AgentSpec, tools: Sequence[ToolSpec]) -> None:
    """Raise DefinitionError if a model of the agent would refuse the tools."""
    schemas = [(tool.name, tool.input_schema) for tool in tools]
    for model in spec.models:
        problem = problem_with_tools(schemas, capabilities_of(model.config))
        if problem is not None:
            raise DefinitionError(f"{model.config.name} would refuse its tools: {problem}")


def _check_together(spec: AgentSpec, tools: Sequence[ToolSpec]) -> None:
    """Raise McpNotReady if the tools do not fit the agent's own settings, or each other."""
    try:
        _check_for_models(spec, tools)
    except DefinitionError as error:
        advice = "name those that it needs in McpServer(tools=[...])"
        raise McpNotReady(f"agent {spec.name!r}: {error}; {advice}") from None
    known = {tool.name: tool for tool in tools}
    for name in spec.limits.per_tool:
        if name not in known:
            raise McpNotReady(
                f"agent {spec.name!r}: limits.per_tool names {name!r}, which no MCP server offers"
            )
    for tool in tools:
        wanted = tool.fallback.tool if tool.fallback else None
        if wanted is None:
            continue
        stand_in = known.get(wanted)
        if stand_in is None or stand_in is tool or stand_in.kind not in _STAND_INS or stand_in.approval:
            raise McpNotReady(
                f"agent {spec.name!r}: tool {tool.name!r} falls back to {wanted!r}, which is no other tool "
                "without approval"
            )


def _check_limits(specs: Sequence[AnySpec]) -> None:
    """Check the names of tools that limits of teams hold."""
    known = {tool.name for spec in specs if isinstance(spec, AgentSpec) for tool in spec.tools}
    for spec in specs:
        for name in spec.limits.per_tool:
            if name not in known:
                raise McpNotReady(
                    f"{spec.name!r}: limits.per_tool names {name!r}, which no MCP server offers"
                )
