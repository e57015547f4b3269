"""Proof that a run ends: wherever it is, within two seconds of a stop, a cancel or its deadline."""
