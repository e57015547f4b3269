"""LangGraph on Temporal: a ReAct agent in the Graph API, its model node and its tool node activities.

As docs.temporal.io/develop/python/integrations/langgraph and the `react_agent` and `streaming` samples it
takes its snippets from show it: the graph by name from the plugin, `execute_in` and a timeout (30 s) in each
node's metadata, an async conditional edge. Messages are LangGraph's own `MessagesState`, and the edge sends
each tool call to a tool node of its own (`Send`, as LangGraph's prebuilt agent does by default), so that
each call is an activity that gets the call and not the conversation: the lighter of the two ways.

The cap on supersteps is left at its default (10,007, enough for 5,000 steps). Two settings differ from the
defaults: messages are Pydantic models, so the client has the SDK's `pydantic_data_converter` (the plugin
sets none; the default one measured the same), and a watcher polls each 50 ms as the streaming sample does
(default 100 ms). Streaming is the plugin's `streaming_topic`, fed by `get_stream_writer`; the workflow does
not wait for the watcher, as watchers read what is left after the run's end. LangChain's fake chat models
play a list of messages and cannot look at the conversation, so ours implements `BaseChatModel`.
"""
