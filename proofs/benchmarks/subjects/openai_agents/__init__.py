"""The OpenAI Agents SDK on Temporal: `Runner.run` in a workflow, its tool made by `activity_as_tool`.

As the README of `temporalio-openai-agents` shows it (sections "Complete Example", "Tool Calling" and
"Streaming"; docs.temporal.io/develop/python/integrations/openai-agents points there), with the timeouts of
its examples: model 30 s, tool 10 s. A run with words to stream uses `Runner.run_streamed` and a
`streaming_topic`, read by a `WorkflowStreamClient`; its batch and poll intervals are the defaults (100 ms).

One setting differs from the defaults: `max_turns=None`, as the default is 10. The plugin ships no way to
continue as new within a run, and no deltas of the conversation. Its `TestModel` is not shown the request,
so our fake implements the SDK's `Model` and is handed out by the plugin's `TestModelProvider`. Tracing is
on, as by default; without a key of OpenAI the SDK exports nothing and says so in the log.
"""
