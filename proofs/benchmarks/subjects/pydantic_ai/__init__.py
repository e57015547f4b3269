"""Pydantic AI on Temporal: an `Agent` with the capability `TemporalDurability`, its tool an activity.

As its guide "Durable Execution with Temporal" (docs/durable_execution/temporal.md of its repository)
recommends: `PydanticAIPlugin`, `PydanticAIWorkflow`, the agent at module level, the default timeout (60 s);
the older `TemporalAgent` is deprecated there. The model is the framework's own `FunctionModel`. A run with
words to stream has an agent of its own with `event_stream_topic` and an `AgentEventStream`, as the docstring
of `AgentEventStream` shows, read by `stream_agent_events`; its intervals are the defaults (100 ms).

Two settings differ from the defaults: `UsageLimits(request_limit=None)`, as the default is 50, and
`continue_as_new`, which the agent guide shipped in the package (ORCHESTRATION-AND-INTEGRATIONS.md) tells runs
to set that are long enough to come near Temporal's history limit. Its body is ours, as the guide says it:
messages and usage are handed on. External storage, its remedy for payloads over 2 MB, is not set up: it is
Temporal's, in public preview, and all subjects do without it.
"""
