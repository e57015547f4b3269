"""Bound of a reply that is too large for the model: made smaller for the call, where the provider says so.

The context is shared by the conversation and the reply. Where the conversation leaves room for a reply that is worth
it, the reply's bound is at fault, and cutting the conversation would help nobody.
"""

from typing import Final

from perdure.errors import ModelError
from perdure.providers.failures import reply_room

MOST_SHORTENINGS: Final = 4
"""Times that the bound of one call is made smaller: once is enough for a provider that tells its numbers."""
_LEAST_WORTH: Final = 512
"""Fewest tokens of a reply for which the conversation stays whole."""


def shorter_bound(error: ModelError, asked: int) -> int | None:
    """Return the bound of the reply with which to call again, or None when the error is about something else."""
    if error.kind not in ("bad_request", "context_overflow"):
        return None
    room = reply_room(str(error), asked)
    least = min(_LEAST_WORTH, max(1, asked // 2))
    return room if room is not None and least <= room < asked else None
