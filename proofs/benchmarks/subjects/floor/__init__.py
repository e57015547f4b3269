"""Floor: a bare Temporal workflow with a model activity and a tool activity a step, both no-ops.

It is the physical limit: nothing that runs each call as an activity can cost less. It carries no
conversation, keeps no state but a counter, and continues as new when the server suggests it.
"""
