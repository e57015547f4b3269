"""Perdure: one agent for each combination of APIs, its tools made from the set's schemas, one session a task.

What differs from the defaults: a tool may be tried 60 times, as an idempotent one may, so that it outlasts
any outage here (the default is 3 attempts); a tool's attempt ends after 5 s and a model call after 10 s,
as both answer in milliseconds (the defaults are one minute and ten).
"""
