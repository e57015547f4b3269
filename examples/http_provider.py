"""A model provider of your own, over plain HTTP: docs/providers.md explains it.

It speaks the native API of Ollama, which answers with a line of JSON for each piece. To try it:

    ollama pull llama3.2 && perdure dev examples/http_provider.py
    perdure run clerk "Where is the tea?"
"""

from collections.abc import Iterator
from typing import Any

from perdure import Agent
from perdure.providers import (
    EMPTY_TEXT,
    HttpModel,
    Message,
    ModelConfig,
    ModelEvent,
    ModelRequest,
    ReplyDraft,
    put_results_after_calls,
    sendable_text,
)


class OllamaModel(HttpModel):
    path = "/api/chat"
    stops = {"stop": "end_turn", "tool_calls": "tool_calls", "length": "max_tokens"}
    unsupported = ("temperature", "top_p", "stop_sequences", "thinking", "effort")

    def build_body(self, request: ModelRequest) -> dict[str, Any]:
        functions = [
            {"name": tool.name, "description": tool.description, "parameters": tool.input_schema}
            for tool in request.tools
            if request.tool_choice != "none"  # this API cannot forbid a tool that is listed
        ]
        turns: list[dict[str, Any]] = [{"role": "system", "content": request.instructions}]
        for message in put_results_after_calls(request.messages):
            turns += write_message(message, request.config)
        return {
            "model": request.config.model,
            "messages": turns,
            "tools": [{"type": "function", "function": function} for function in functions],
            "options": {"num_predict": request.max_tokens},
        }

    def fold(self, piece: dict[str, Any], draft: ReplyDraft) -> Iterator[ModelEvent]:
        if "error" in piece:
            raise draft.provider_error(piece)
        message = piece.get("message", {})
        yield from draft.append(draft.block("thinking", "thinking"), message.get("thinking", ""))
        yield from draft.append(draft.block("text", "text"), message.get("content", ""))
        for call in message.get("tool_calls", []):
            draft.add_call(call["function"]["name"], call["function"]["arguments"])
        if piece.get("done"):
            read, written = piece.get("prompt_eval_count"), piece.get("eval_count")
            draft.count_tokens(final=True, input_tokens=read, output_tokens=written)
            draft.finish("tool_calls" if draft.has_calls else piece.get("done_reason", ""))


def write_message(message: Message, config: ModelConfig) -> list[dict[str, Any]]:
    if message.role == "tool":
        results = message.tool_results
        return [{"role": "tool", "tool_name": r.name, "content": r.text or EMPTY_TEXT} for r in results]
    calls = [{"function": {"name": call.name, "arguments": call.arguments}} for call in message.tool_calls]
    return [{"role": message.role, "content": sendable_text(message, config), "tool_calls": calls}]


models = {"own": OllamaModel("http://localhost:11434")}
clerk = Agent(name="clerk", model="own:llama3.2", instructions="Answer in one sentence.")
