"""Strands Agents on Temporal, by Temporal's own plugin: the worker in its own environment.

As the plugin's docs show it: `StrandsPlugin` with a model factory, a `TemporalAgent` in the workflow, each
tool an activity made a tool by `activity_as_tool`. One workflow plays a task, turn after turn, with one
agent.

It has no idempotency key. Its tools send what Temporal offers to any activity: run id and activity id,
which are the same for each attempt. Retries are Temporal's own, without an end, as both defaults are;
timeouts are those of all subjects here; the client's own retries are off, as Temporal's docs say; a model
call's heartbeat timeout is 5 s.
"""
