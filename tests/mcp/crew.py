"""Agents for the test that kills their worker in the midst of calls to an MCP server."""

import os
import sys
from datetime import timedelta
from pathlib import Path

from perdure import Agent, McpServer, McpTool
from perdure.model import ModelRequest
from perdure.testing import Line, ScriptedModel, calls, says

FOLDER = Path(os.environ.get("CREW_LEDGER", "/nonexistent"))
ROOT = Path(__file__).parents[2]


def script(request: ModelRequest) -> list[Line]:
    """Call `slow` as a write and as a read, then end."""
    return [calls("w_slow"), calls("r_slow")] if request.step == 1 else [says("done")]


def server(name: str, *tools: McpTool) -> McpServer:
    """Return the test server, with a heartbeat so short that a death is soon noticed."""
    command = [sys.executable, "-m", "tests.mcp.server", str(FOLDER)]
    return McpServer(name=name, command=command, cwd=str(ROOT), tools=tools, heartbeat=timedelta(seconds=2))


slow = Agent(
    name="slow",
    model="scripted:x",
    tools=[server("w", McpTool("slow")), server("r", McpTool("slow", effect="read"))],
)
models = {"scripted": ScriptedModel(script)}
