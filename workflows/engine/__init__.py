"""Decisions of runs, as values in and values out.

Every file here is pure: no Temporal, clock, chance or I/O. The import-linter holds it, except for `datetime.now`.
"""
