"""Programs that prove what the documents claim: benchmarks, chaos and soak.

People run them: `make proofs`. CI runs their quick forms.
"""
