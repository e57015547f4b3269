"""Perdure: one agent for each combination of APIs, its tools made from the set's schemas, one session a task.

A tool has 60 attempts, as an idempotent tool may, so that it outlasts any outage here (the default is 3
attempts). A tool's attempt ends after 5 s and a model call after 10 s, because both answer in milliseconds
(the defaults are one minute and ten).
"""
