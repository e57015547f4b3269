"""Tokens as the provider counts them: a tokenizer of its own, and Anthropic's rules for media and tools."""

import base64
import json
import re
import struct
from typing import Any

_PIECES = re.compile(r"[A-Za-z]{1,5}|[0-9]{1,2}|[^\sA-Za-z0-9]")
TOOL_PROMPT = 346
"""Tokens that the provider adds when tools are offered."""
CALL_TOKENS = 30
"""Tokens of a call's name and marks."""
_PAGE = 2400
_MESSAGE = 4


def count_text(text: str) -> int:
    """Return the tokens of a text."""
    return sum(1 for _ in _PIECES.finditer(text))


def count_request(body: dict[str, Any]) -> int:
    """Return the tokens that a request has the model read."""
    tools: list[dict[str, Any]] = body.get("tools") or []
    fixed = count_text(json.dumps(tools)) + TOOL_PROMPT if tools else 0
    system = body.get("system") or ""
    spoken = system if isinstance(system, str) else "".join(block.get("text", "") for block in system)
    return fixed + count_text(spoken) + sum(_MESSAGE + _content(m["content"]) for m in body["messages"])


def _content(content: str | list[dict[str, Any]]) -> int:
    return count_text(content) if isinstance(content, str) else sum(_block(block) for block in content)


def _block(block: dict[str, Any]) -> int:
    match block["type"]:
        case "text":
            return count_text(block["text"])
        case "tool_use":
            return CALL_TOKENS + count_text(json.dumps(block["input"]))
        case "tool_result":
            return 8 + _content(block.get("content") or "")
        case "thinking":
            return count_text(block["thinking"])
        case "image":
            size: tuple[int, int] = struct.unpack(">II", base64.b64decode(block["source"]["data"])[16:24])
            return min(-(-size[0] * size[1] // 750), 4784)
        case "document":
            return _document(block["source"])
        case _:
            return 0


def _document(source: dict[str, Any]) -> int:
    if source["type"] == "text":
        return count_text(source["data"])
    data = base64.b64decode(source["data"])
    return data.count(b"/Type /Page ") * _PAGE if data.startswith(b"%PDF") else count_text(data.decode())
