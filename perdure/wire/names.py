"""Names that cross a process: workflows, updates, signals, queries, activities, attributes, error types.

Any Temporal client in any language can use them. They are contracts: a change adds names, it never renames.
"""

from typing import Final

WORKFLOW: Final = "AgentWorkflow"
SESSION_WORKFLOW: Final = "SessionWorkflow"
WORKFLOWS: Final = (WORKFLOW, SESSION_WORKFLOW)
TASK_QUEUE: Final = "perdure"

# Updates, signals and queries of AgentWorkflow.
SEND: Final = "send"
RESOLVE_APPROVAL: Final = "resolve_approval"
PAUSE: Final = "pause"
RESUME: Final = "resume"
STOP: Final = "stop"
WAKE: Final = "wake"
STATUS: Final = "status"
TRANSCRIPT: Final = "transcript"
REDRIVE: Final = "redrive"
RESULT: Final = "result"

# Of SessionWorkflow, beside those.
SAY: Final = "say"
REPLY: Final = "reply"
INTERRUPT: Final = "interrupt"

# Types of the errors a run may fail with, beside the kinds of `perdure.errors.RULES`.
UNKNOWN_AGENT: Final = "UnknownAgent"
INVALID_REQUEST: Final = "InvalidRequest"
SESSION_OVER: Final = "SessionOver"
"""Type of the error a message gets that the session ended before reading."""
LOST_UPDATE: Final = "UnprocessedUpdate"
"""The server's own type of error for an update that its worker has neither taken nor refused: the SDK can
lose one together with its task. Nothing was changed: it can be said again."""

# Activities, and the query by which they read a run.
RESOLVE_AGENT: Final = "resolve_agent"
CALL_NODE: Final = "call_node"
KEEP_TEXT: Final = "keep_text"
RELAY: Final = "relay"
CALL_MODEL: Final = "call_model"
CALL_TOOL: Final = "call_tool"

FINAL_ANSWER: Final = "final_answer"
"""The tool of ours by which a model gives an output of a type; it is never run."""

READ_RESULT: Final = "read_result"
"""The tool of ours that reads the rest of a result that was cut; offered once there is one."""

HANDOFF: Final = "handoff_to_agent"
"""The tool of ours by which an agent of a swarm passes control on."""

UPDATE_PLAN: Final = "update_plan"
"""The tool of ours by which an agent keeps its plan."""

GRAPH_CODE: Final = "perdure_graph_code"
"""The worker's own function that gives a run the functions of a graph."""

SPEC_QUERY: Final = "spec"
"""Query that gives an activity the run's pinned AgentSpec."""

STALE: Final = "StaleTranscript"
"""Error type: the transcript asked for is not there any more; the workflow schedules the call anew."""

TOO_LARGE: Final = "PayloadsTooLarge"
"""What the SDK makes of a result that the server would not take. Not to be tried again: it has happened."""
TOO_LARGE_TYPES: Final = (TOO_LARGE, "GrpcMessageTooLarge")
"""The SDK's error types for oversize payloads. Retrying them would only repeat the side effect."""

BLOB_STORE_FAILED: Final = "BlobStoreFailed"
"""Error type: a payload could not be kept. Not retried either: its activity has had its effect."""

MAY_BE_DONE: Final = "MayBeDone"
"""Error type: the call did not come to its end, and may have had its effect. Another worker may make it."""
WORKER_SHUTDOWN: Final = "WorkerShutdown"
"""The SDK's error type for a call that its worker's end has cut short."""

# Signals between a run and the runs it starts.
REPORT: Final = "child_report"
"""Signal, child to parent: a Report."""
GRANT: Final = "grant"
"""Signal, parent to child: a Grant."""
