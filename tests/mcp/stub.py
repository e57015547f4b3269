"""HTTP server of MCP without any SDK, of protocol 2025-06-18, with the faults that a call names in its text.

`fault:401`, or another status; `fault:reset` ends the connection; `fault:cut` ends the answer in its midst;
`fault:garbage` answers with what is no message; `fault:rpc` with an error of JSON-RPC. Once only: `fault:429`, and
`fault:gone`, which says that the session is over.
"""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

TOOL = {"name": "echo", "description": "Echo.", "inputSchema": {"type": "object"}}


@dataclass
class Stub:
    """The server, and what it has seen."""

    port: int = 0
    tokens: list[str] = field(default_factory=list[str])
    """Header `authorization` of each request."""
    faults: list[str] = field(default_factory=list[str])
    """Faults of the calls that came."""
    sessions: int = 0
    done: set[str] = field(default_factory=set[str])

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of a connection."""
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await self._answer_next(reader, writer):
                await writer.drain()
        writer.close()

    async def _answer_next(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        lines = [line.partition(":") for line in head.splitlines()[1:]]
        headers = {name.lower(): value.strip() for name, _, value in lines}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if "authorization" in headers:
            self.tokens.append(headers["authorization"])
        message: dict[str, Any] = json.loads(body) if body else {}
        if not head.startswith("POST") or message.get("method") == "server/discover":
            return send(writer, 405, {})
        if "id" not in message:
            return send(writer, 202, None)
        return self._respond(message, writer)

    def _respond(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        match message["method"]:
            case "initialize":
                self.sessions += 1
                info = {"name": "stub", "version": "1"}
                result: Any = {
                    "protocolVersion": "2025-06-18",
                    "capabilities": {"tools": {}},
                    "serverInfo": info,
                }
                return answer(writer, message, result, f"mcp-session-id: s{self.sessions}\r\n")
            case "tools/list":
                return answer(writer, message, {"tools": [TOOL]})
            case _:
                return self._call(message, writer)

    def _call(self, message: dict[str, Any], writer: asyncio.StreamWriter) -> bool:
        text: str = message["params"]["arguments"]["text"]
        fault = text.removeprefix("fault:") if text.startswith("fault:") else ""
        if fault:
            self.faults.append(fault)
        is_first = fault not in self.done
        self.done.add(fault)
        match fault:
            case "429" if is_first:
                return send(writer, 429, {}, "retry-after: 0\r\n")
            case "gone" if is_first:
                return send(writer, 404, {})
            case "reset":
                writer.transport.abort()
                return False
            case "cut":
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{"
                )
                return False
            case "garbage":
                return send(writer, 200, "no message")
            case "rpc":
                error = {"code": -32602, "message": "invalid arguments of the stub"}
                return send(writer, 400, {"jsonrpc": "2.0", "id": message["id"], "error": error})
            case "400" | "401" | "500" | "503":
                return send(writer, int(fault), {})
            case _:
                return answer(writer, message, {"content": [{"type": "text", "text": text}]})


def answer(writer: asyncio.StreamWriter, message: dict[str, Any], result: Any, headers: str = "") -> bool:
    """Answer a request with its result."""
    return send(writer, 200, {"jsonrpc": "2.0", "id": message["id"], "result": result}, headers)


def send(writer: asyncio.StreamWriter, status: int, body: Any, headers: str = "") -> bool:
    """Write a response."""
    data = b"" if body is None else json.dumps(body).encode()
    lines = f"content-type: application/json\r\n{headers}content-length: {len(data)}\r\n\r\n"
    writer.write(f"HTTP/1.1 {status} X\r\n{lines}".encode() + data)
    return True


@asynccontextmanager
async def serve_stub() -> AsyncGenerator[Stub]:
    """Serve on loopback until the block ends."""
    stub = Stub()
    server = await asyncio.start_server(stub.handle, "127.0.0.1", 0)
    stub.port = server.sockets[0].getsockname()[1]
    try:
        yield stub
    finally:
        server.close()
