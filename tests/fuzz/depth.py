"""How deep the fuzzers dig: shallow for every change, deep with `make fuzz`."""

import os
from typing import Any

from hypothesis import HealthCheck, settings

_LARGE = (HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much)
TIMES = int(os.environ.get("FUZZ_TIMES", "1"))
"""So many times the examples of a quick run; above 1 they are others each time."""


def examples(count: int, **more: Any) -> settings:
    """So many examples, or that many times more; no machine is too slow for them."""
    return settings(
        max_examples=int(os.environ.get("FUZZ_COUNT", count)) * TIMES,
        derandomize=TIMES == 1,
        deadline=None,
        database=None,
        print_blob=True,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, *_LARGE],
        **more,
    )
