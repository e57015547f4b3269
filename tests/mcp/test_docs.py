"""The page on MCP servers: its blocks run."""

from typing import Any

from perdure import Agent, McpServer
from perdure.members import resolve_member

from ..workflow.test_docs import run_blocks


def test_blocks_of_the_page_run() -> None:
    """The definitions of the page are made as a reader would make them, and give a spec."""
    space = run_blocks("docs/mcp.md")
    clerk: Agent[Any] = space["clerk"]
    assert [server.name for server in clerk.mcp_servers] == ["files", "tickets"]
    assert "TICKETS" not in resolve_member(clerk).model_dump_json()
    assert isinstance(space["wiki"], McpServer)
