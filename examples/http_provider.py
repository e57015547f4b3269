"""A model provider of your own, over plain HTTP: docs/providers.md explains it line by line.

It speaks the native API of Ollama, which answers with a line of JSON for each piece. To try it:

    ollama pull llama3.2 && perdure dev examples/http_provider.py
    perdure run clerk "Where is the tea?"
"""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx2  # the HTTP library that anthropic brings; any other does

from perdure import Agent
from perdure.providers import (
    EMPTY_TEXT,
    CallDeadline,
    Message,
    ModelConfig,
    ModelError,
    ModelEvent,
    ModelRequest,
    ModelStop,
    ProviderOptions,
    ReplyDraft,
    Text,
    Usage,
    digest,
    is_context_overflow,
    kind_of_status,
    parse_retry_after,
    put_results_after_calls,
    read_options,
    reject_setting,
    sendable_parts,
)

STOPS: dict[str, ModelStop] = {"stop": "end_turn", "tool_calls": "tool_calls", "length": "max_tokens"}


class HttpModel:
    def __init__(self, base_url: str = "http://localhost:11434") -> None:
        self._base_url = base_url
        self._client = httpx2.AsyncClient()

    def check(self, config: ModelConfig) -> None:
        read_options(ProviderOptions, config)
        if config.effort is not None:
            reject_setting(config, "effort", "leave it out")

    async def stream(self, request: ModelRequest) -> AsyncIterator[ModelEvent]:
        options = read_options(ProviderOptions, request.config)
        url = f"{options.base_url or self._base_url}/api/chat"
        body = build_body(request) | options.extra_body
        draft = ReplyDraft(request, digest(body))
        deadline = CallDeadline(request.config)
        timeout = httpx2.Timeout(5.0, read=request.config.longest_silence)
        try:
            async with self._client.stream("POST", url, json=body, timeout=timeout) as answer:
                if answer.status_code != 200:
                    raise await read_refusal(answer, draft)
                draft.open(answer.headers.get("x-request-id"))
                lines = answer.aiter_lines()
                while (line := await deadline.wait_for(anext(lines, None))) is not None:
                    for event in fold_line(json.loads(line), draft):
                        yield event
            if not draft.complete:
                raise draft.cut_error()
            yield draft.reply(STOPS)
        except ModelError:
            raise
        except (TimeoutError, httpx2.TimeoutException):
            raise draft.timeout_error() from None
        except httpx2.TransportError as error:
            raise draft.connection_error(error) from error
        except Exception as error:
            raise draft.unforeseen_error(error) from error


def build_body(request: ModelRequest) -> dict[str, Any]:
    functions = [
        {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
        for tool in request.tools
        if request.tool_choice == "auto"  # this API cannot forbid a tool that is listed
    ]
    history = put_results_after_calls(request.messages)
    return {
        "model": request.config.model,
        "messages": [
            {"role": "system", "content": request.instructions},
            *(turn for message in history for turn in write_message(message, request.config)),
        ],
        "tools": [{"type": "function", "function": function} for function in functions],
        "options": {"num_predict": request.max_tokens},
    }


def write_message(message: Message, config: ModelConfig) -> list[dict[str, Any]]:
    if message.role == "tool":
        results = message.tool_results
        return [{"role": "tool", "tool_name": r.name, "content": r.text or EMPTY_TEXT} for r in results]
    text = "".join(part.text for part in sendable_parts(message, config) if isinstance(part, Text))
    calls = [{"function": {"name": c.name, "arguments": c.arguments}} for c in message.tool_calls]
    return [{"role": message.role, "content": text or EMPTY_TEXT, "tool_calls": calls}]


def fold_line(line: dict[str, Any], draft: ReplyDraft) -> Iterator[ModelEvent]:
    if "error" in line:
        raise draft.error("overloaded", line["error"])
    message = line.get("message", {})
    yield from draft.append(draft.block("thinking", "thinking"), message.get("thinking", ""))
    yield from draft.append(draft.block("text", "text"), message.get("content", ""))
    for call in message.get("tool_calls", []):
        block = draft.block(f"call {len(draft.blocks)}", "tool_call")
        block.name = call["function"]["name"]
        draft.append(block, json.dumps(call["function"]["arguments"]))
    if line["done"]:
        has_calls = any(block.kind == "tool_call" for block in draft.blocks.values())
        draft.stop = "tool_calls" if has_calls else line["done_reason"]
        draft.complete = True
        usage = Usage(input_tokens=line["prompt_eval_count"], output_tokens=line["eval_count"])
        draft.count(usage, final=True)


async def read_refusal(answer: httpx2.Response, draft: ReplyDraft) -> ModelError:
    await answer.aread()
    kind = "context_overflow" if is_context_overflow(answer.text) else kind_of_status(answer.status_code)
    return draft.error(kind, f"{answer.status_code}: {answer.text}", parse_retry_after(answer.headers))


models = {"own": HttpModel()}
clerk = Agent(name="clerk", model="own:llama3.2", instructions="Answer in one sentence.")
