"""Causes for which runs are parked: the kinds of error that park."""

from typing import get_args

from perdure.errors import ErrorKind, InvalidRequest


def match_cause(word: str) -> str:
    """Return the kind of error that the word names, or that alone begins with it: `auth`.

    Raises:
        InvalidRequest: no kind begins with the word, or several do.

    """
    kinds: tuple[str, ...] = get_args(ErrorKind)
    if word in kinds:
        return word
    matching = [kind for kind in kinds if kind.startswith(word)]
    if len(matching) == 1:
        return matching[0]
    raise InvalidRequest(f"no cause {word!r}; the causes are {', '.join(kinds)}")
