"""Perdure, as its README shows it: an agent with one tool, served by its plugin at its defaults.

What differs from the defaults: the cap of 50 steps is off, an agent of its own gets results of more than
16 KB whole (as all other subjects do), up to 100 tools of a step run at once, and the provider is a fake one.
"""
