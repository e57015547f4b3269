"""Conformance of providers: what every adapter must do, checked against recorded answers of real wire formats.

`python -m perdure.providers.check my_module:MyModel --dialect openai` runs it; docs/providers.md shows how.

Each file `*.json` beside this one holds the shapes of one dialect: answers as a server sends them, by name. The names
have fixed meanings, and `checks` says what an adapter must make of each. A dialect is added by its file alone.
"""

from .runner import Result, check_model
from .shapes import Answer, Shapes, load_shapes, shipped_dialects

__all__ = ["Answer", "Result", "Shapes", "check_model", "load_shapes", "shipped_dialects"]
