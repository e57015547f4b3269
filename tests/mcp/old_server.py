"""MCP server without any SDK, by stdio, of an older protocol: `python old_server.py VERSION [FAULT]`.

Faults: `circle` lists tools without an end; `noise` writes lines that are no messages; `deaf` never answers; `moving`
has another description after a call, and sends a notice of it.
"""

import json
import sys
from typing import Any

VERSION, FAULT = sys.argv[1], (sys.argv[2:] or [""])[0]
TOOL = {"name": "echo", "description": "Return the text.", "inputSchema": {"type": "object"}}


def answer(method: str, params: dict[str, Any]) -> dict[str, Any] | None:
    """Return the result of a request, or None for a method that there is not."""
    match method:
        case "initialize":
            info = {"name": "old", "version": "1"}
            return {"protocolVersion": VERSION, "capabilities": {"tools": {}}, "serverInfo": info}
        case "tools/list":
            return {"tools": [TOOL], **({"nextCursor": "again"} if FAULT == "circle" else {})}
        case "tools/call":
            return {"content": [{"type": "text", "text": f"{VERSION} {params['arguments']['text']}"}]}
        case _:
            return None


MOVED = json.dumps({"jsonrpc": "2.0", "method": "notifications/tools/list_changed"})

for line in sys.stdin:
    if FAULT == "deaf":
        continue
    message = json.loads(line)
    if "id" not in message:
        continue
    result = answer(message["method"], message.get("params", {}))
    error = {"error": {"code": -32601, "message": "no such method"}}
    reply = {"jsonrpc": "2.0", "id": message["id"], **({"result": result} if result else error)}
    if FAULT == "noise":
        sys.stdout.write("Starting up...\n\n{}\n")
    if FAULT == "moving" and message["method"] == "tools/call":
        TOOL["description"] = "Return another text."
        sys.stdout.write(MOVED + "\n")
    sys.stdout.write(json.dumps(reply) + "\n")
    sys.stdout.flush()
