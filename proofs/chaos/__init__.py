"""Proof by chaos: public tasks played through the whole stack while its parts are killed and cut off.

The tasks are the multi-turn base set of BFCL (`bfcl-eval`): 200 conversations over 8 stateful APIs,
written by others. A scripted model plays the gold calls through a fake provider, Perdure's worker, and
tools that reach the APIs over HTTP; the set's own checker judges the final state. Nothing of the set is
kept here.

These processes take part, and each is killed or cut off by some kind of fault:

    conductor ---- sessions ---> Temporal <--- proxy --- workers --- proxy ---> provider (`provider.py`)
        ^                                                   |
        |                                                   +-- HTTP --------> tools (`tools/service.py`)
        +---- "the n-th call is here", "go on" (standard streams) ----- provider, tools

Faults happen at the n-th call, not at a second of the clock: see `schedule.py`. `gold.py`, `catalogue.py`,
`journal.py`, `web.py`, `link.py` and `tools/` run in the environment of the set, with the standard library
only.
"""
