"""Names that cross a process: workflows, updates, signals, queries, activities, tools, error types.

Any Temporal client in any language can use them. They are contracts: a change adds names and renames none.
Search attributes are in `attributes`, ids in `ids`.
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
EXTENDABLE: Final = "extendable"
"""Query of a closed run: refuses, in words, an extension that it cannot go on with."""
CARRIED: Final = "carried"
"""Query of a closed run: its state as continue-as-new would carry it, a part at a time."""

# Updates, signals and queries that only SessionWorkflow has.
SAY: Final = "say"
REPLY: Final = "reply"
INTERRUPT: Final = "interrupt"
UPGRADE: Final = "upgrade"
EXTEND: Final = "extend"

# Error types with which a run or a request fails, beside the kinds of `perdure.errors.RULES`.
UNKNOWN_AGENT: Final = "UnknownAgent"
INVALID_REQUEST: Final = "InvalidRequest"
NO_ROOM: Final = "NoRoom"
"""Error type: the run takes no messages now, because the rest of its room is kept for decisions."""
SESSION_OVER: Final = "SessionOver"
"""Error type: the session ended before it read the message."""
SPEC_UNREADABLE: Final = "SpecUnreadable"
"""Error type: the spec of a run cannot be decoded. The run waits, and asks again."""
INSTRUCTIONS_FAILED: Final = "InstructionsFailed"
MCP_NOT_READY: Final = "McpServerNotReady"
"""Error type: an MCP server does not offer what the agent needs of it. The run waits, and asks again."""
LOST_UPDATE: Final = "UnprocessedUpdate"
"""Error type of the server: the worker neither accepted nor rejected the update. Nothing was changed, so the
client sends it again. The SDK can lose an update together with its workflow task."""

# Activities.
RESOLVE_AGENT: Final = "resolve_agent"
CALL_NODE: Final = "call_node"
KEEP_TEXT: Final = "keep_text"
RELAY: Final = "relay"
BIND_ARGUMENTS: Final = "bind_arguments"
END_EARLIER_CHILD: Final = "end_earlier_child"
CALL_MODEL: Final = "call_model"
CALL_TOOL: Final = "call_tool"
RUN_HOOKS: Final = "run_hooks"
COUNT_ATTEMPTS: Final = "count_attempts"
RENEW_BLOBS: Final = "renew_blobs"
REBUILD: Final = "rebuild"
FIND_EXECUTIONS: Final = "find_executions"
REMEMBER: Final = "remember"
ACTIVITIES: Final = frozenset(
    {
        RESOLVE_AGENT,
        CALL_NODE,
        KEEP_TEXT,
        RELAY,
        CALL_MODEL,
        CALL_TOOL,
        RUN_HOOKS,
        COUNT_ATTEMPTS,
        RENEW_BLOBS,
        REBUILD,
        FIND_EXECUTIONS,
        REMEMBER,
    }
)

FINAL_ANSWER: Final = "final_answer"
"""Tool by which a model gives an output of a type. The call is the output: it never runs."""

READ_RESULT: Final = "read_result"
"""Tool that reads the rest of a result that was cut; offered once a result was cut."""

READ_BACK: Final = "read_back"
"""Tool that reads messages which have left the window; offered once some have, where the context strategy says so."""

HANDOFF: Final = "handoff_to_agent"
"""Tool by which an agent of a swarm hands off to another."""

UPDATE_PLAN: Final = "update_plan"
"""Tool by which an agent keeps its plan."""

GRAPH_CODE: Final = "perdure_graph_code"
"""Name under which a worker gives its runs the functions of a graph."""
SCHEDULERS: Final = "perdure_schedulers"
"""Name under which a worker gives its runs the scheduler of a pattern."""

SPEC_QUERY: Final = "spec"
"""Query for the run's ResolvedAgent, with its pinned spec."""

STALE_TRANSCRIPT: Final = "StaleTranscript"
"""Error type: the run's transcript no longer has the length that the call names. The call is made anew."""

TOO_LARGE: Final = "PayloadsTooLarge"
"""Error type of the SDK: the server does not accept the result because of its size."""
TOO_LARGE_TYPES: Final = (TOO_LARGE, "GrpcMessageTooLarge")
"""Error types of the SDK for oversize payloads. Not retried: a retry would only repeat the side effect."""

BLOB_STORE_FAILED: Final = "BlobStoreFailed"
"""Error type: the blob store did not take a payload. Not retried: the activity has had its effect."""

MAY_HAVE_EFFECT: Final = "MayHaveEffect"
"""Error type: the call was cut short and may have had its effect. Another worker may make it again."""
NOT_CALLED: Final = "NotCalled"
"""Error type: the tool was not called. Another worker may call it."""
NOT_SERVED: Final = "not_served"
"""Last detail of an activity's error: nothing was done, as the worker does not serve what was called."""
WORKER_SHUTDOWN: Final = "WorkerShutdown"
"""Error type of the SDK: the worker's shutdown cut the call short."""

# Signals between a run and the runs it starts.
REPORT: Final = "child_report"
"""Signal from a child to its parent, with a Report."""
GRANT: Final = "grant"
"""Signal from a parent to its child, with a Grant."""

FOR_ANY_CLIENT: Final = "perdure-for-any-client"
"""Key in the metadata of a payload that clients and workers without Perdure read: it stays out of the blob store.
Types say so by `for_any_client`."""
