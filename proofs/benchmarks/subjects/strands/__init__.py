"""Strands Agents on Temporal: a `TemporalAgent` with its tool as an activity.

As the plugin's README and docs.temporal.io/develop/python/integrations/strands-agents show it: the plugin
on the client, the model by the name of a factory, the tool by `activity_as_tool`, their timeouts (model
60 s, tool 30 s), and for streaming a `WorkflowStream` and `streaming_topic` (only for runs with words to
stream), read by a `WorkflowStreamClient`.

The framework has no cap on turns. One setting differs from the defaults: `callback_handler=None`, as the
default one prints to standard output. The poll interval of a watcher is the 50 ms of the streaming sample
(the library's own default is 100 ms). Strands ships no fake model; ours implements its `Model`.
"""
