"""Graph of a ReAct agent, and its workflow."""

from datetime import timedelta
from typing import Any

from langchain_core.messages import AIMessageChunk, ToolCall, message_chunk_to_message
from langgraph.config import get_stream_writer
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Send
from temporalio import workflow
from temporalio.contrib.workflow_streams import WorkflowStream
from temporalio.langgraph import graph

with workflow.unsafe.imports_passed_through():
    from proofs.benchmarks.kit import Job

    from .model import MODEL, lookup

NAME = "react-agent"


async def agent(state: dict[str, Any]) -> dict[str, Any]:
    """Ask the model; words to stream, if the job has any, go to the stream writer as they come."""
    messages = state["messages"]  # as JSON made them: the model takes messages as dictionaries, too
    if not Job.of(messages[0]["content"]).tokens:
        return {"messages": [await MODEL.ainvoke(messages)]}
    writer = get_stream_writer()
    received = AIMessageChunk(content="")
    async for chunk in MODEL.astream(messages):
        if chunk.text:
            writer({"token": chunk.text})
        received += chunk
    if not received.tool_calls:
        writer({"done": True})
    return {"messages": [message_chunk_to_message(received)]}


async def tools(call: ToolCall) -> dict[str, Any]:
    """Run one tool call."""
    return {"messages": [await lookup.ainvoke(call)]}


async def should_continue(state: MessagesState) -> list[Send] | str:
    """Return a run of the tool node for each call of the newest message, or the end."""
    return [Send("tools", call) for call in state["messages"][-1].tool_calls] or END


def react_agent() -> StateGraph[Any, Any, Any, Any]:
    """Build the graph START -> agent -> (tools -> agent)* -> END, both nodes as activities."""
    activity = {"execute_in": "activity", "start_to_close_timeout": timedelta(seconds=30)}
    builder = StateGraph(MessagesState)
    builder.add_node("agent", agent, metadata=activity)
    builder.add_node("tools", tools, metadata=activity)
    builder.add_edge(START, "agent")
    builder.add_conditional_edges("agent", should_continue, ["tools", END])
    builder.add_edge("tools", "agent")
    return builder


@workflow.defn
class ReactAgentWorkflow:
    """Workflow that asks an agent a question."""

    def __init__(self) -> None:
        self.stream = WorkflowStream()

    @workflow.run
    async def run(self, prompt: str) -> str:
        """Run the graph."""
        state = await graph(NAME).compile().ainvoke({"messages": [{"role": "user", "content": prompt}]})
        return str(state["messages"][-1].content)
