"""Perdure, as its README shows it: an agent with one tool, served by its plugin at its defaults.

These settings differ from the defaults: the cap of 50 steps is off; an agent of its own gets results of more
than 16 KB in full, as in all other subjects; up to 100 tools of a step run at once; the provider is a fake.
"""
