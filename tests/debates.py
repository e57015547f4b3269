"""The debate of the examples, as tests use it: it stands outside the package, as a user's own pattern would."""

import importlib
import sys
from pathlib import Path
from typing import Any

EXAMPLES = Path(__file__).parents[1] / "examples"


def load_debate() -> Any:
    """Return the module `debate` of the examples."""
    sys.path.insert(0, str(EXAMPLES))
    try:
        return importlib.import_module("debate")
    finally:
        sys.path.remove(str(EXAMPLES))
