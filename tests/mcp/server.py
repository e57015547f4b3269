"""MCP server for tests, of the official SDK: `python -m tests.mcp.server FOLDER [PORT]`; without a port, by stdio.

The folder holds what a test reads and sets:
- `started`: a line a process; `calls`: a line a call that was carried out
- `gate`: `slow` waits until it is there; `dies`: `die` then ends the process; `quiet`: the process does not start
- `description`: text of the tool `shifting`; `count`: number of numbered tools, listed ten a page
"""

import asyncio
import base64
import json
import os
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import mcp_types as types
import uvicorn
from mcp.server.lowlevel import Server
from mcp.server.stdio import stdio_server

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="
)
PAGE = 10

Handler = Callable[[Any, dict[str, Any]], Awaitable[types.CallToolResult]]


def schema(**properties: str) -> dict[str, Any]:
    """Return the schema of an object with these required properties, by type."""
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "type": "object",
        "properties": {name: {"type": kind} for name, kind in properties.items()},
        "required": list(properties),
    }


def says(*texts: str, **more: Any) -> types.CallToolResult:
    """Return a result of texts."""
    content: list[Any] = [types.TextContent(type="text", text=text) for text in texts]
    return types.CallToolResult(content=content, **more)


class TestServer:
    """Server whose tools and behaviour a folder decides."""

    __test__ = False

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.handlers: dict[str, tuple[types.Tool, Handler]] = {}
        self._add("echo", "Return the text.", self.echo, schema(text="string"), readOnlyHint=True)
        self._add("add", "Add an amount to an account.", self.add, schema(amount="integer", account="string"))
        self._add("broken", "Fail.", self.broken, schema(), destructiveHint=True)
        self._add("slow", "Report progress and wait.", self.slow, schema())
        self._add("die", "End the process in the midst of the call.", self.die, schema(text="string"))
        self._add("mixed", "Return parts of all kinds.", self.mixed, schema())
        self._add("weather", "Tell the weather.", self.weather, schema(city="string"))
        self._add("secrets", "Return the environment.", self.secrets, schema())
        self._add("odd.name/with:signs" + "x" * 60, "Have an odd name.", self.odd, schema())
        self._add("odd.name/with_signs" + "x" * 60, "Have another odd name.", self.odd, schema())

    def _add(self, name: str, text: str, handler: Handler, takes: dict[str, Any], **hints: Any) -> None:
        annotations = types.ToolAnnotations.model_validate(hints) if hints else None
        tool = types.Tool(name=name, description=text, input_schema=takes, annotations=annotations)
        self.handlers[name] = (tool, handler)

    def has(self, name: str) -> bool:
        """Check whether the folder holds a file of that name."""
        return (self.folder / name).exists()

    def read(self, name: str) -> str:
        """Return the text of a file of the folder, or an empty one."""
        return (self.folder / name).read_text().strip() if self.has(name) else ""

    def note(self, line: str) -> None:
        """Write down that a call was carried out."""
        with (self.folder / "calls").open("a") as file:
            file.write(f"{line}\n")

    # -- the protocol

    async def list_tools(self, context: Any, params: Any) -> types.ListToolsResult:
        """Return a page of tools."""
        tools = [tool for tool, _ in self.handlers.values()]
        if self.has("description"):
            tools.append(
                types.Tool(name="shifting", description=self.read("description"), input_schema=schema())
            )
        numbers = range(int(self.read("count") or 0))
        tools += [
            types.Tool(name=f"tool_{n:03}", description=f"Tool {n}.", input_schema=schema()) for n in numbers
        ]
        start = int(params.cursor) if params and params.cursor else 0
        rest = len(tools) > start + PAGE
        return types.ListToolsResult(
            tools=tools[start : start + PAGE], next_cursor=str(start + PAGE) if rest else None
        )

    async def call_tool(self, context: Any, params: types.CallToolRequestParams) -> types.CallToolResult:
        """Call a tool."""
        if params.name in self.handlers:
            return await self.handlers[params.name][1](context, params.arguments or {})
        self.note(params.name)
        return says(f"called {params.name}")

    # -- the tools

    async def echo(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        meta = dict(context.meta or {})
        self.note(f"echo {arguments['text']} {meta.get('dev.perdure/idempotency-key', '')}")
        return says(arguments["text"])

    async def add(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        self.note(f"add {arguments['amount']!r} {arguments['account']}")
        return says(f"added {arguments['amount']}")

    async def broken(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        self.note("broken")
        return says("the disk is on fire", is_error=True)

    async def slow(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        self.note("slow")
        await context.session.report_progress(2, 3, "part two")
        try:
            while not self.has("gate"):
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.note("slow cancelled")
            raise
        return says("finished")

    async def die(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        self.note(f"die {arguments['text']}")
        if self.has("dies"):
            (self.folder / "dies").unlink()
            os._exit(1)
        return says("alive")

    async def mixed(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        picture = base64.b64encode(PNG).decode()
        blob = types.BlobResourceContents(uri="file:///data/raw.bin", blob="AAEC", mime_type="application/x")
        text = types.TextResourceContents(uri="file:///data/note.txt", text="a note")
        content: list[Any] = [
            types.TextContent(type="text", text="first"),
            types.ImageContent(type="image", data=picture, mime_type="image/jpeg"),  # it is a PNG
            types.ImageContent(type="image", data=picture[:60], mime_type="image/png"),
            types.AudioContent(type="audio", data="AAEC", mime_type="audio/wav"),
            types.ResourceLink(type="resource_link", name="report", uri="file:///data/report.pdf"),
            types.EmbeddedResource(type="resource", resource=text),
            types.EmbeddedResource(type="resource", resource=blob),
        ]
        return types.CallToolResult(content=content, structured_content={"sum": 3})

    async def weather(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        found = {"city": arguments["city"], "degrees": 21.5}
        return says(json.dumps(found), structured_content=found)

    async def secrets(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        return says(" ".join(sorted(os.environ)), os.environ.get("TEST_TOKEN", ""))

    async def odd(self, context: Any, arguments: dict[str, Any]) -> types.CallToolResult:
        return says("odd")


def server_of(folder: Path) -> "Server[Any]":
    """Return the SDK's server with the behaviour of the folder."""
    made = TestServer(folder)
    return Server("tests", on_list_tools=made.list_tools, on_call_tool=made.call_tool)


async def serve_stdio(folder: Path) -> None:
    """Serve one client, by stdin and stdout."""
    server = server_of(folder)
    async with stdio_server() as (read, write):
        await server.run(read, write, server.create_initialization_options())


if __name__ == "__main__":
    place = Path(sys.argv[1])
    with (place / "started").open("a") as started:
        started.write(f"{os.getpid()}\n")
    if (place / "quiet").exists():
        sys.stderr.write("no disk today\n")
        time.sleep(0.05)
        sys.exit(3)
    if len(sys.argv) > 2:
        uvicorn.run(server_of(place).streamable_http_app(), port=int(sys.argv[2]), log_level="warning")
    else:
        asyncio.run(serve_stdio(place))
