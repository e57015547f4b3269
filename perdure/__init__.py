"""Durable AI agents on Temporal.

Exports are imported lazily. Temporal's sandbox imports parent packages inside every workflow, and an import
of an HTTP library there would stop the worker.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from perdure.agent import Agent
    from perdure.blobs import BlobStore, DatedBlobStore, StoredBlob
    from perdure.context import SlidingWindow, Summary
    from perdure.errors import (
        DefinitionError,
        FatalToolError,
        InvalidRequest,
        ModelError,
        NotReachable,
        OutputMismatch,
        PerdureError,
        RetryableToolError,
        RunConflict,
        RunEnded,
        RunFailed,
        RunNotFound,
        UnknownAgent,
    )
    from perdure.fallbacks import Fallback, ToolFallback
    from perdure.graph import Edge, Graph, GraphState, Node, NodeInput
    from perdure.hooks import Hook
    from perdure.instructions import InstructionsContext
    from perdure.limits import GraphLimits, Limits, PatternLimits, SwarmLimits
    from perdure.mcp import McpServer, McpTool, McpToolInfo
    from perdure.messages import Document, Image, Message, Usage
    from perdure.model import ModelConfig
    from perdure.pattern import Pattern
    from perdure.policy import Policy, Rule
    from perdure.resources import Lifespan, lifespan
    from perdure.retries import ToolRetry
    from perdure.starter.client.connect import Client, connect
    from perdure.starter.client.run import Run
    from perdure.starter.client.session import Session
    from perdure.swarm import Swarm
    from perdure.tools import AgentTool, RemoteTool, Tool, ToolContext, as_tool, ask_person, tool
    from perdure.user_credentials import CredentialRequest, Credentials, credentials
    from perdure.wire.requests import RunRequest
    from perdure.wire.results import NodeResult, RunResult, RunStatus, TurnReply
    from perdure.workers.plugin import PerdurePlugin
    from perdure.workflows.run_agent import run_agent

_HOME = {
    "Agent": "perdure.agent",
    "AgentTool": "perdure.tools",
    "BlobStore": "perdure.blobs",
    "Client": "perdure.starter.client.connect",
    "CredentialRequest": "perdure.user_credentials",
    "Credentials": "perdure.user_credentials",
    "DatedBlobStore": "perdure.blobs",
    "DefinitionError": "perdure.errors",
    "Document": "perdure.messages",
    "Edge": "perdure.graph",
    "Fallback": "perdure.fallbacks",
    "FatalToolError": "perdure.errors",
    "Graph": "perdure.graph",
    "GraphLimits": "perdure.limits",
    "GraphState": "perdure.graph",
    "Hook": "perdure.hooks",
    "Image": "perdure.messages",
    "InstructionsContext": "perdure.instructions",
    "InvalidRequest": "perdure.errors",
    "Lifespan": "perdure.resources",
    "Limits": "perdure.limits",
    "McpServer": "perdure.mcp",
    "McpTool": "perdure.mcp",
    "McpToolInfo": "perdure.mcp",
    "Message": "perdure.messages",
    "ModelConfig": "perdure.model",
    "ModelError": "perdure.errors",
    "Node": "perdure.graph",
    "NodeInput": "perdure.graph",
    "NodeResult": "perdure.wire.results",
    "NotReachable": "perdure.errors",
    "OutputMismatch": "perdure.errors",
    "Pattern": "perdure.pattern",
    "PatternLimits": "perdure.limits",
    "PerdureError": "perdure.errors",
    "PerdurePlugin": "perdure.workers.plugin",
    "Policy": "perdure.policy",
    "RemoteTool": "perdure.tools",
    "RetryableToolError": "perdure.errors",
    "Rule": "perdure.policy",
    "Run": "perdure.starter.client.run",
    "RunConflict": "perdure.errors",
    "RunEnded": "perdure.errors",
    "RunFailed": "perdure.errors",
    "RunNotFound": "perdure.errors",
    "RunRequest": "perdure.wire.requests",
    "RunResult": "perdure.wire.results",
    "RunStatus": "perdure.wire.results",
    "Session": "perdure.starter.client.session",
    "SlidingWindow": "perdure.context",
    "StoredBlob": "perdure.blobs",
    "Summary": "perdure.context",
    "Swarm": "perdure.swarm",
    "SwarmLimits": "perdure.limits",
    "Tool": "perdure.tools",
    "ToolContext": "perdure.tools",
    "ToolFallback": "perdure.fallbacks",
    "ToolRetry": "perdure.retries",
    "TurnReply": "perdure.wire.results",
    "UnknownAgent": "perdure.errors",
    "Usage": "perdure.messages",
    "as_tool": "perdure.tools",
    "ask_person": "perdure.tools",
    "connect": "perdure.starter.client.connect",
    "credentials": "perdure.user_credentials",
    "lifespan": "perdure.resources",
    "run_agent": "perdure.workflows.run_agent",
    "tool": "perdure.tools",
}

__all__ = [
    "Agent",
    "AgentTool",
    "BlobStore",
    "Client",
    "CredentialRequest",
    "Credentials",
    "DatedBlobStore",
    "DefinitionError",
    "Document",
    "Edge",
    "Fallback",
    "FatalToolError",
    "Graph",
    "GraphLimits",
    "GraphState",
    "Hook",
    "Image",
    "InstructionsContext",
    "InvalidRequest",
    "Lifespan",
    "Limits",
    "McpServer",
    "McpTool",
    "McpToolInfo",
    "Message",
    "ModelConfig",
    "ModelError",
    "Node",
    "NodeInput",
    "NodeResult",
    "NotReachable",
    "OutputMismatch",
    "Pattern",
    "PatternLimits",
    "PerdureError",
    "PerdurePlugin",
    "Policy",
    "RemoteTool",
    "RetryableToolError",
    "Rule",
    "Run",
    "RunConflict",
    "RunEnded",
    "RunFailed",
    "RunNotFound",
    "RunRequest",
    "RunResult",
    "RunStatus",
    "Session",
    "SlidingWindow",
    "StoredBlob",
    "Summary",
    "Swarm",
    "SwarmLimits",
    "Tool",
    "ToolContext",
    "ToolFallback",
    "ToolRetry",
    "TurnReply",
    "UnknownAgent",
    "Usage",
    "as_tool",
    "ask_person",
    "connect",
    "credentials",
    "lifespan",
    "run_agent",
    "tool",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'perdure' has no attribute {name!r}")
    # No module of this package may have the name of an export: importing the module would rebind that name,
    # and `from perdure import tool` would return a module.
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
