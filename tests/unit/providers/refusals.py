"""Refusals of requests, as the providers would word them: a check of a whole body for each API.

Written from the providers' references and their refusals, and not from the adapters.
"""

import base64
import itertools
import json
import re
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any

from botocore.session import get_session
from botocore.validate import ParamValidator

Body = dict[str, Any]

_STARTS = {
    "image/png": b"\x89PNG\r\n\x1a\n",
    "image/jpeg": b"\xff\xd8\xff",
    "image/gif": b"GIF8",
    "image/webp": b"RIFF",
    "application/pdf": b"%PDF-",
}
_FORMATS = {"png": "image/png", "jpeg": "image/jpeg", "gif": "image/gif", "webp": "image/webp"}


class Refused(Exception):
    """The provider answers with status 400."""


def need(holds: object, why: str) -> None:
    if not holds:
        raise Refused(why)


def written(body: Body) -> str:
    text = json.dumps(body, ensure_ascii=False, default=lambda data: base64.b64encode(data).decode())
    text.encode()
    need("\\u0000" not in text, "a zero byte")
    return text


# -- Anthropic


def refuse_anthropic(body: Body) -> None:
    """Raise `Refused` for a body that the Messages API does not take."""
    messages = body["messages"]
    need(written(body).count('"cache_control"') <= 4, "more than four marks")
    need(messages and messages[0]["role"] == "user", "the first message must be the user's")
    roles = [message["role"] for message in messages]
    need(all(a != b for a, b in itertools.pairwise(roles)), "roles must alternate")
    for at, message in enumerate(messages):
        blocks = message["content"]
        need(blocks, f"messages.{at}: content must not be empty")
        for block in blocks:
            _refuse_anthropic_block(block)
        calls = [block["id"] for block in blocks if block["type"] == "tool_use"]
        need(len(set(calls)) == len(calls), "tool_use ids must be unique")
        following: list[Body] = messages[at + 1]["content"] if at + 1 < len(messages) else []
        _refuse_unpaired(
            calls, [block["tool_use_id"] for block in following if block["type"] == "tool_result"]
        )
        first = [block["type"] == "tool_result" for block in blocks]
        need(first == sorted(first, reverse=True), "tool_result blocks must come first")
        need(message["role"] == "user" or not blocks[-1]["type"].endswith("thinking"), "ends in thinking")
        before: list[Body] = messages[at - 1]["content"] if at else []
        asked = {block["id"] for block in before if block["type"] == "tool_use"}
        found = {block["tool_use_id"] for block in blocks if block["type"] == "tool_result"}
        need(found <= asked, "unexpected tool_use_id in tool_result")
    _refuse_server_tools(messages)
    images = [block for block in _all_blocks(messages) if block["type"] == "image"]
    need(len(images) <= 100, "too many images")
    large = any(int.from_bytes(base64.b64decode(i["source"]["data"])[16:20]) > 2000 for i in images)
    need(len(images) <= 20 or not large, "image dimensions exceed max allowed size for many-image requests")
    if roles[-1] == "assistant":
        last = messages[-1]["content"]
        kinds = {block["type"] for block in last} - {"tool_use", "tool_result"}
        is_paused = any(kind.endswith(("tool_use", "tool_result")) for kind in kinds)
        need(is_paused, "prefill is not supported")
        need(last[-1].get("text", "x") == last[-1].get("text", "x").rstrip(), "trailing whitespace")
    _refuse_thinking(body)
    _refuse_anthropic_tools(body)


def _all_blocks(messages: Iterable[Body]) -> list[Body]:
    blocks = [block for message in messages for block in message["content"]]
    inner = [b for block in blocks if isinstance(block.get("content"), list) for b in block["content"]]
    return [*blocks, *(block for block in inner if isinstance(block, dict) and "type" in block)]


def _refuse_unpaired(calls: list[str], results: list[str]) -> None:
    need(sorted(calls) == sorted(results), "tool_use ids without tool_result blocks immediately after")


def _refuse_anthropic_block(block: Body) -> None:
    match block["type"]:
        case "text":
            need(block["text"].strip(), "text content blocks must contain non-whitespace text")
        case "thinking":
            need(block.get("signature"), "thinking.signature: Field required")
        case "tool_use":
            need(re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", block["name"]), "tool_use.name: pattern")
            need(re.fullmatch(r"[a-zA-Z0-9_-]+", block["id"]), "tool_use.id: pattern")
            need(isinstance(block["input"], dict), "tool_use.input: must be an object")
        case "tool_result":
            need(re.fullmatch(r"[a-zA-Z0-9_-]+", block["tool_use_id"]), "tool_use_id: pattern")
            for inner in block["content"]:
                need(inner["type"] in ("text", "image", "document"), "tool_result.content: type")
                _refuse_anthropic_block(inner)
        case "image":
            _refuse_file(block["source"]["media_type"], base64.b64decode(block["source"]["data"]), 5 * 2**20)
            need(block["source"]["media_type"].startswith("image/"), "media_type")
        case "document":
            need(block["title"].strip(), "title: must not be blank")
            if block["source"]["type"] == "text":
                need(block["source"]["data"].strip(), "document source must not be empty")
            else:
                need(block["source"]["media_type"] == "application/pdf", "media_type")
                _refuse_file("application/pdf", base64.b64decode(block["source"]["data"]), 32 * 2**20)
        case _:
            pass


def _refuse_file(media_type: str, data: bytes, most: int) -> None:
    need(media_type in _STARTS, f"media_type {media_type}")
    need(data.startswith(_STARTS[media_type]), f"could not process {media_type}")
    need(len(base64.b64encode(data)) <= most, "exceeds the maximum size")


def _refuse_server_tools(messages: list[Body]) -> None:
    """A call of a tool on the server needs its result: in its turn, or it ends the conversation."""
    seen: set[str] = set()
    for at, message in enumerate(messages):
        ids = {b["id"] for b in message["content"] if b["type"] == "server_tool_use"}
        seen |= ids
        found = {b["tool_use_id"] for b in message["content"] if b["type"].endswith("_tool_result")}
        need(found <= seen, "a result without its server_tool_use")
        rest = messages[at + 1 :]
        open_ids = ids - found
        if not open_ids or not rest:
            continue
        only_results = all(block["type"] == "tool_result" for block in rest[0]["content"])
        need(only_results, "tool use was found without a corresponding result block")
        if len(rest) > 1:
            later = {b["tool_use_id"] for b in rest[1]["content"] if b["type"].endswith("_tool_result")}
            need(open_ids <= later, "tool use was found without a corresponding result block")


def _refuse_thinking(body: Body) -> None:
    thinking = body.get("thinking", {})
    if thinking.get("type") != "enabled":
        return
    need(1024 <= thinking["budget_tokens"] < body["max_tokens"], "budget_tokens")
    assistants = [at for at, message in enumerate(body["messages"]) if message["role"] == "assistant"]
    if not assistants:
        return
    last, following = body["messages"][assistants[-1]], body["messages"][assistants[-1] + 1 :]
    is_mid_turn = not following or following[0]["content"][0]["type"] == "tool_result"
    need(not is_mid_turn or last["content"][0]["type"].endswith("thinking"), "Expected `thinking`")


def _refuse_anthropic_tools(body: Body) -> None:
    calls = any(block["type"] == "tool_use" for block in _all_blocks(body["messages"]))
    need(body.get("tools") or not calls, "tools: required")
    for tool in body.get("tools", ()):
        need(re.fullmatch(r"[a-zA-Z0-9_-]{1,128}", tool["name"]), "tools.name: pattern")
        schema = tool["input_schema"]
        need(schema.get("type") == "object", "input_schema.type")
        for name in schema.get("properties", {}):
            need(re.fullmatch(r"[a-zA-Z0-9_.-]{1,64}", name), "Property keys should match pattern")
        need(not {"oneOf", "anyOf", "allOf"} & set(schema), "oneOf, allOf, or anyOf at the top level")


# -- Bedrock


@lru_cache(maxsize=1)
def _converse() -> Any:
    return get_session().get_service_model("bedrock-runtime").operation_model("ConverseStream").input_shape


def refuse_bedrock(body: Body) -> None:
    """Raise `Refused` for a body that Converse does not take."""
    report = ParamValidator().validate(body, _converse())
    need(not report.has_errors(), report.generate_report())
    written(body)
    messages, model = body["messages"], body["modelId"]
    knows_results = "anthropic." in model or "amazon.nova" in model
    roles = [message["role"] for message in messages]
    need(roles[0] == "user", "A conversation must start with a user message")
    need(roles[-1] == "user", "A conversation must end with a user message")
    need(all(a != b for a, b in itertools.pairwise(roles)), "roles must alternate")
    names: list[str] = []
    images = 0
    for at, message in enumerate(messages):
        blocks = [block for block in message["content"] if "cachePoint" not in block]
        need(blocks, "content must not be empty")
        need("reasoningContent" not in blocks[-1], "ends in reasoning")
        calls = [block["toolUse"]["toolUseId"] for block in blocks if "toolUse" in block]
        following: list[Body] = messages[at + 1]["content"] if at + 1 < len(messages) else []
        results = [block["toolResult"] for block in blocks if "toolResult" in block]
        _refuse_unpaired(calls, [b["toolResult"]["toolUseId"] for b in following if "toolResult" in b])
        before: list[Body] = messages[at - 1]["content"] if at else []
        asked = {block["toolUse"]["toolUseId"] for block in before if "toolUse" in block}
        need({result["toolUseId"] for result in results} <= asked, "toolResult without toolUse")
        need(
            knows_results or not results or len(results) == len(blocks), "Conversation and tool result blocks"
        )
        inner = [block for result in results for block in result["content"]]
        need(knows_results or all("text" in block for block in inner), "toolResult.content: type")
        documents = [block["document"] for block in (*blocks, *inner) if "document" in block]
        shown = [block for block in blocks if "document" in block]
        need(not shown or any("text" in block for block in blocks), "a document needs a text beside it")
        images += sum("image" in block for block in (*blocks, *inner))
        names += [document["name"] for document in documents]
        for block in (*blocks, *inner):
            _refuse_bedrock_block(block)
    need(images <= 20, "too many images")
    need(len(names) <= 5, "too many documents")
    need(len(set(names)) == len(names), "documents must have unique names")
    _refuse_bedrock_settings(body, messages)


def _refuse_bedrock_block(block: Body) -> None:
    need(len(block) == 1, "a block has one field")
    if "text" in block:
        need(block["text"].strip(), "text must not be blank")
    if call := block.get("toolUse"):
        need(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", call["name"]), "toolUse.name: pattern")
        need(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", call["toolUseId"]), "toolUse.toolUseId: pattern")
    if image := block.get("image"):
        need(image["source"]["bytes"].startswith(_STARTS[_FORMATS[image["format"]]]), "image: bytes")
        need(len(image["source"]["bytes"]) <= 3.75 * 2**20, "image: size")
    if document := block.get("document"):
        need(re.fullmatch(r"[A-Za-z0-9()\[\]-]+( [A-Za-z0-9()\[\]-]+)*", document["name"]), "document: name")
        need(len(document["name"]) <= 200, "document: name")
        need(0 < len(document["source"]["bytes"]) <= 4.5 * 2**20, "document: size")
        need(
            document["format"] != "pdf" or document["source"]["bytes"].startswith(b"%PDF-"), "document: bytes"
        )


def _refuse_bedrock_settings(body: Body, messages: list[Body]) -> None:
    calls = any("toolUse" in block for message in messages for block in message["content"])
    need(body.get("toolConfig") or not calls, "toolConfig must be defined")
    thinking = body.get("additionalModelRequestFields", {}).get("thinking", {})
    if thinking.get("type") == "enabled":
        most = body["inferenceConfig"]["maxTokens"]
        need(1024 <= thinking["budget_tokens"] < most, "budget_tokens")
        last = [at for at, message in enumerate(messages) if message["role"] == "assistant"][-1:]
        for at in last:
            is_mid_turn = any("toolResult" in block for block in messages[at + 1]["content"])
            need(not is_mid_turn or "reasoningContent" in messages[at]["content"][0], "Expected `thinking`")
    for tool in body.get("toolConfig", {}).get("tools", ()):
        if "toolSpec" in tool:
            schema = tool["toolSpec"]["inputSchema"]["json"]
            need(schema.get("type") == "object", "inputSchema.json.type")
            if "amazon.nova" in body["modelId"]:
                need(set(schema) <= {"type", "properties", "required"}, "inputSchema: keywords at the top")


# -- chat completions


def refuse_chat(body: Body) -> None:
    """Raise `Refused` for a body that the chat completions API, or a model behind it, does not take."""
    written(body)
    model, messages = body["model"], body["messages"]
    open_calls: list[str] = []
    before = ""
    for at, message in enumerate(messages):
        role = message["role"]
        if role == "tool":
            need(
                message["tool_call_id"] in open_calls, f"messages.[{at}].role: 'tool' must follow tool_calls"
            )
            open_calls.remove(message["tool_call_id"])
            need(isinstance(message["content"], str) and message["content"].strip(), "tool content")
        else:
            need(not open_calls, "tool_call_ids did not have response messages")
        if role == "assistant":
            open_calls = [call["id"] for call in message.get("tool_calls", ())]
            need(len(set(open_calls)) == len(open_calls), "ids of calls must be unique")
            need(open_calls or message["content"].strip(), "content: expected a text")
            _refuse_chat_calls(message, model)
        if role == "user":
            _refuse_chat_content(message["content"], model)
            need("mistral" not in model or before != "tool", "Unexpected role 'user' after role 'tool'")
        before = role
    need(not open_calls, "tool_call_ids did not have response messages")
    need(messages[-1]["role"] in ("user", "tool"), "Expected last role User or Tool but got assistant")


def _refuse_chat_calls(message: Body, model: str) -> None:
    calls = message.get("tool_calls", ())
    for call in calls:
        need(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", call["function"]["name"]), "function.name: pattern")
        need(len(call["id"]) <= 40, "id: string too long")
        need("mistral" not in model or re.fullmatch(r"[a-zA-Z0-9]{9}", call["id"]), "Tool call id was")
        need(isinstance(json.loads(call["function"]["arguments"]), dict), "arguments: an object")
    if calls and "deepseek" in model:
        need(message.get("reasoning_content"), "Missing `reasoning_content` field")
    if calls and "gemini-3" in model:
        signature = calls[0].get("extra_content", {}).get("google", {}).get("thought_signature")
        need(signature, "Function call is missing a thought_signature")


def _refuse_chat_content(content: Any, model: str) -> None:
    if isinstance(content, str):
        need(content.strip(), "content must not be blank")
        return
    need(content, "content must not be empty")
    for block in content:
        match block["type"]:
            case "text":
                need(block["text"].strip(), "text must not be blank")
            case "image_url":
                need("deepseek" not in model, "unknown variant `image_url`, expected `text`")
                kind, _, data = block["image_url"]["url"].removeprefix("data:").partition(";base64,")
                need(kind.startswith("image/"), "unsupported image")
                _refuse_file(kind, base64.b64decode(data), 50 * 2**20)
            case "file":
                need("deepseek" not in model, "unknown variant `file`, expected `text`")
                kind, _, data = block["file"]["file_data"].removeprefix("data:").partition(";base64,")
                _refuse_file(kind, base64.b64decode(data), 50 * 2**20)
                need(block["file"]["filename"].strip(), "filename")
            case other:
                need(False, f"unknown variant {other}")


# -- Gemini


def refuse_gemini(body: Body) -> None:
    """Raise `Refused` for a body that Gemini's own API does not take."""
    written(body)
    contents = body["contents"]
    need(contents and contents[0]["role"] == "user", "contents must begin with the user")
    need(contents[-1]["role"] == "user", "multiturn requests must end with a user turn")
    for at, content in enumerate(contents):
        need(content["parts"], "contents.parts must not be empty")
        for part in content["parts"]:
            _refuse_gemini_part(part)
        calls = [part["functionCall"]["id"] for part in content["parts"] if "functionCall" in part]
        following: list[Body] = contents[at + 1]["parts"] if at + 1 < len(contents) else []
        found = [part["functionResponse"]["id"] for part in following if "functionResponse" in part]
        need(not calls or content["role"] == "model", "a function call is the model's")
        _refuse_unpaired(calls, found)
        before: list[Body] = contents[at - 1]["parts"] if at else []
        answered = any("functionResponse" in part for part in content["parts"])
        need(not answered or any("functionCall" in part for part in before), "response without a call")
    for tool in body.get("tools", ()):
        for declared in tool["functionDeclarations"]:
            need(re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}", declared["name"]), "function name")
            parameters = declared.get("parametersJsonSchema")
            need(parameters is None or parameters["properties"], "should be non-empty for OBJECT type")


def _refuse_gemini_part(part: Body) -> None:
    if call := part.get("functionCall") or part.get("functionResponse"):
        need(re.fullmatch(r"[a-zA-Z_][a-zA-Z0-9_.:-]{0,63}", call["name"]), "function name")
        need(isinstance(call.get("args", {}), dict), "args must be an object")
    elif data := part.get("inlineData"):
        kinds = ("image/png", "image/jpeg", "image/webp", "image/heic", "image/heif", "application/pdf")
        need(data["mimeType"] in kinds, f"unsupported MIME type {data['mimeType']}")
        need(base64.b64decode(data["data"]), "inlineData must not be empty")
    else:
        need(
            part.get("text") or part.get("thoughtSignature") or "type" in part,
            "must have one initialized field",
        )


# -- Responses


def refuse_responses(body: Body) -> None:
    """Raise `Refused` for a body that the Responses API does not take."""
    written(body)
    items = body["input"]
    need(items, "input must not be empty")
    open_calls: set[str] = set()
    for at, item in enumerate(items):
        match item.get("type"):
            case "function_call":
                need(re.fullmatch(r"[a-zA-Z0-9_-]{1,64}", item["name"]), "function_call.name: pattern")
                need(len(item["call_id"]) <= 64, "call_id: too long")
                need(item["call_id"] not in open_calls, "call_id must be unique")
                need(isinstance(json.loads(item["arguments"]), dict), "arguments: an object")
                open_calls.add(item["call_id"])
            case "function_call_output":
                need(item["call_id"] in open_calls, "No tool call found for function call output")
                open_calls.remove(item["call_id"])
                need(item["output"], "output must not be empty")
            case "reasoning":
                need(item.get("encrypted_content"), "encrypted_content")
                after: Body = items[at + 1] if at + 1 < len(items) else {}
                need(
                    after.get("role") != "user", "reasoning was provided without its required following item"
                )
                need(after, "reasoning was provided without its required following item")
            case None:
                need(item["role"] == "assistant" or not open_calls, "No tool output found for function call")
                _refuse_responses_content(item["content"])
            case _:
                pass
    need(not open_calls, "No tool output found for function call")


def _refuse_responses_content(content: Any) -> None:
    if isinstance(content, str):
        need(content.strip(), "content must not be blank")
        return
    need(content, "content must not be empty")
    for block in content:
        match block["type"]:
            case "input_text":
                need(block["text"].strip(), "text must not be blank")
            case "input_image":
                kind, _, data = block["image_url"].removeprefix("data:").partition(";base64,")
                _refuse_file(kind, base64.b64decode(data), 50 * 2**20)
            case "input_file":
                kind, _, data = block["file_data"].removeprefix("data:").partition(";base64,")
                _refuse_file(kind, base64.b64decode(data), 50 * 2**20)
                need(block["filename"].strip(), "filename")
            case other:
                need(False, f"unknown variant {other}")


REFUSALS: dict[str, Callable[[Body], None]] = {
    "anthropic": refuse_anthropic,
    "bedrock": refuse_bedrock,
    "openai": refuse_chat,
    "azure": refuse_chat,
    "gemini": refuse_gemini,
    "responses": refuse_responses,
    "vllm": refuse_chat,
    "ollama": refuse_chat,
}
"""Check of a body by the provider of its model."""
