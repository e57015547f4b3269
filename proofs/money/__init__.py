"""Proof of money under faults: the provider's own bill is the judge.

Trees of runs (agents that call agents, swarms, graphs) with limits of each kind are played through the whole stack.
The provider speaks Anthropic's API over HTTP. It bills for cut and abandoned streams, for thinking that it hides,
for arguments of tools, for cached tokens, pictures and documents. Workers and the Temporal server are killed in
the middle of its answers, runs below are terminated, and trees are stopped.

    conductor ---- runs ---> Temporal <--- workers (`agents.py`) ---> provider (`provider.py`)
        ^                                                                |
        +---- "the n-th answer is half sent", "go on" -------------------+

For each tree: billed <= limit + the last token of a call; booked >= billed, or marked as estimated and within 5 %.
See `judge.py`.
"""
