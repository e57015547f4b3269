"""DBOS, with a Pydantic AI agent made durable by its `DBOSDurability` capability.

Follows "Durable Execution with DBOS" in Pydantic AI's documentation (docs/durable_execution/dbos.md),
to which DBOS's own page on Pydantic AI refers: the agent has the capability, its run is called in a
workflow, and the tool is a `DBOS.step`. The older `DBOSAgent` is deprecated there, and
`dbos-openai-agents` calls itself beta and cannot stream. Runs are started and awaited by a
`DBOSClient`, through a queue (DBOS's "Queues & Concurrency", "Enqueueing from Another Application").
Streaming is DBOS's own (its "Streaming Responses"): the capability's event handler writes the model's
text to a durable stream from within the model step, and the client reads it.

There is no server: the database is SQLite, in the subject's folder, and its work is done inside the
worker and the driver; with `PERDURE_BENCH_POSTGRES` set to a URL, it is Postgres, as DBOS recommends
for production. What differs from the defaults:

- the cap of 50 model requests a run is off (`request_limit=None`): jobs have up to 1000 steps;
- the fake model is Pydantic AI's `FunctionModel`, and it states its usage: unless it does, it counts
  the words of the whole conversation at each call, which a provider's client need not do;
- on Postgres each folder has a schema of its own, so that it is as empty as a new SQLite file, and
  the client is told to listen for notifications (`use_listen_notify=True`) instead of polling streams;
- the driver migrates the database too, so that it does not matter which process comes first.

Polling, concurrency and retries are at their defaults: the queue looks for new runs once a second, and
so does the client for results, which adds about a second to each run: `evidence` gives the time that
the run itself took. DBOS leaves SQLite at SQLite's own defaults (rollback journal, every commit synced).
"""
