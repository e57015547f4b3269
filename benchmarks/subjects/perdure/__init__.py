"""Perdure, as its README shows it: an agent with one tool, served by its plugin at its defaults.

Three settings differ from the defaults: the cap of 50 steps is off, results of up to 30 KB are shown
to the model whole (as all other subjects do), and the provider is a fake one.
"""
