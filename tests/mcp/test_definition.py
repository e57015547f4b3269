"""Definitions of MCP servers: what is refused at once, and what never reaches a spec."""

import subprocess
import sys
from datetime import timedelta
from typing import Any

import pytest

from perdure import Agent, DefinitionError, Limits, McpServer, McpTool, Swarm, SwarmLimits, ToolFallback, tool

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "no transport": ({}, "give either url"),
    "two transports": ({"url": "https://a/mcp", "command": "x"}, "give either url"),
    "a scheme": ({"url": "file:///etc/passwd"}, "http:// or https://"),
    "a password in the url": ({"url": "https://me:secret@host/mcp"}, "holds a password"),
    "an open quote": ({"command": "npx 'x"}, "cannot be split"),
    "an empty command": ({"command": " "}, "names a program"),
    "headers of a process": ({"command": "x", "headers": {"A": "b"}}, "headers are for a url"),
    "env of an address": ({"url": "https://a", "env": {"A": "b"}}, "env and cwd are for a command"),
    "no tools": ({"command": "x", "tools": []}, "tools is empty"),
    "a tool's name alone": ({"command": "x", "tools": "read"}, '"all" or a list'),
    "a tool twice": ({"command": "x", "tools": ["a", McpTool("a")]}, "names 'a' twice"),
    "a tool of another kind": ({"command": "x", "tools": [3]}, "neither a name nor an McpTool"),
    "an effect": ({"command": "x", "effect": "delete"}, "read, write or a function"),
    "an effect of a tool": ({"command": "x", "tools": [McpTool("a", effect="no")]}, "use read or write"),  # type: ignore[arg-type]
    "no time": ({"command": "x", "timeout": timedelta()}, "timeout must be positive"),
    "no connections": ({"command": "x", "connections": 0}, "connections must be 1"),
    "no concurrency": ({"command": "x", "tools": [McpTool("a", concurrency=0)]}, "concurrency must be 1"),
    "a prefix": ({"command": "x", "prefix": "a b"}, "prefix 'a b'"),
    "a list from the future": ({"command": "x", "recheck": timedelta(seconds=-1)}, "must not be negative"),
}


@pytest.mark.parametrize("row", WRONG)
def test_wrong_definitions_are_named(row: str) -> None:
    """A wrong definition is refused where it is made, with the server's name and the field."""
    settings, words = WRONG[row]
    with pytest.raises(DefinitionError, match="MCP server 't': ") as raised:
        McpServer(name="t", **settings)
    assert words in str(raised.value)


@pytest.mark.parametrize("name", ["", "9a", "a.b", "a" * 33])
def test_wrong_names_are_refused(name: str) -> None:
    """A server's name is the beginning of its tools' names, so it follows their rule."""
    with pytest.raises(DefinitionError, match="MCP server name"):
        McpServer(name=name, command="x")


def test_definitions_hide_their_values() -> None:
    """The text of a definition, which may reach a log, holds neither headers nor environment."""
    server = McpServer(name="t", command="x", env={"KEY": "hidden"})
    assert "hidden" not in repr(server)
    assert "hidden" not in repr(McpServer(name="t", url="https://a", headers={"K": "hidden"}))


def test_names_of_tools_are_checked_by_prefix() -> None:
    """A limit or stand-in may name a tool that a server may offer, and no other."""
    server = McpServer(name="files", command="x")

    @tool(fallback=ToolFallback(tool="files_read"))
    def read() -> str:
        """Read."""
        return ""

    agent = Agent(
        name="a", model="scripted:x", tools=[read, server], limits=Limits(per_tool={"files_write": 2})
    )
    Swarm(name="s", agents=[agent], entry=agent, limits=SwarmLimits(per_tool={"files_write": 2}))
    for wrong in ("file_write", "files"):
        with pytest.raises(DefinitionError, match=wrong):
            Agent(name="a", model="scripted:x", tools=[server], limits=Limits(per_tool={wrong: 2}))
    with pytest.raises(DefinitionError, match="two tools are called"):
        Agent(name="a", model="scripted:x", tools=[server, McpServer(name="files", command="y")])


def test_agents_without_servers_are_unchanged() -> None:
    """An agent without MCP servers has the spec that it had before there were any."""
    spec = Agent(name="a", model="scripted:x").spec()
    assert "mcp" not in spec.model_dump_json()
    with_server = Agent(
        name="a", model="scripted:x", tools=[McpServer(name="t", command="x -k secret")]
    ).spec()
    assert with_server.hash != spec.hash
    assert "secret" not in with_server.model_dump_json()


def test_importing_perdure_does_not_import_the_sdk() -> None:
    """The SDK is imported by a worker that connects to a server, and by nothing else."""
    code = (
        "import sys, perdure; from perdure import Agent, McpServer, PerdurePlugin, connect; "
        "PerdurePlugin([Agent(name='a', model='scripted:x', tools=[McpServer(name='t', command='x')])]); "
        "assert not {'mcp', 'mcp_types', 'starlette', 'uvicorn'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_missing_sdk_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker without the extra says how to install it, before it serves anything."""
    from perdure.activities.mcp import pool

    monkeypatch.setattr(pool, "find_spec", dict[str, Any]().get)
    with pytest.raises(DefinitionError, match=r"pip install \"perdure\[mcp\]\""):
        pool.require_sdk([McpServer(name="t", command="x")])
    pool.require_sdk([])
