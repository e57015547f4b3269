"""Pydantic AI on Temporal: agents with the capability `TemporalDurability`, their tools activities.

As its guide "Durable Execution with Temporal" recommends: `PydanticAIPlugin`, `PydanticAIWorkflow`, the
agents at module level. One workflow plays a task, turn after turn, handing the messages on. Tools are made by
`Tool.from_schema`, as its docs show for functions whose schema is known. The model is not streamed: nobody
watches.

It has no idempotency key. Its tools send what Temporal offers to any activity: run id and activity id,
which are the same for each attempt. Timeouts are those of all subjects here; the client's own retries are
off, as its guide says; everything else is at its defaults.
"""
