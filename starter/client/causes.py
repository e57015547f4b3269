"""Causes for which runs are parked: the kinds of error that park."""

from perdure.errors import InvalidRequest, match_kind


def match_cause(word: str) -> str:
    """Return the kind of error that the word names, or that alone begins with it: `auth`.

    Raises:
        InvalidRequest: no kind begins with the word, or several do.

    """
    try:
        return match_kind(word)
    except ValueError as error:
        raise InvalidRequest(f"no cause {word!r}; the causes are {error}") from None
