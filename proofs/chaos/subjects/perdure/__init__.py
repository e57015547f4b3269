"""Perdure: one agent for each combination of APIs, its tools made from the set's schemas, one session a task.

All settings are the product's defaults, except where the faults themselves last longer than they allow: see
`ABOUT_TOOLS` and `ABOUT_MODELS` in `proofs.chaos.subjects`.
"""
