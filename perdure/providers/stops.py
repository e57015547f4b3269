"""Stop reasons of providers, in the words that they share. Pure.

An adapter's own table comes first. What it does not name may still be known here: gateways pass on words of servers
that they hide. A word that says that the answer is broken, and one that nobody knows, end no run: the call is made
again.
"""

import re
from collections.abc import Mapping
from typing import Final

from perdure.errors import ErrorKind
from perdure.model import ModelStop

MODEL_REFUSAL: Final = "model_refusal"
"""Our own word for a refusal in the model's words: the conversation goes on with all that was said."""

_WORDS: Final[dict[ModelStop, str]] = {
    "end_turn": "end_turn stop end eos eos_token stop_token completed complete finished finish done normal",
    "tool_calls": "tool_calls tool_call tool_use function_call function_calls",
    "max_tokens": "max_tokens length max_length max_output_tokens max_new_tokens token_limit output_limit",
    "stop_sequence": "stop_sequence stop_word stop_str",
    "refusal": (
        "refusal model_refusal content_filter content_filtered safety recitation blocklist prohibited_content spii "
        "sensitive image_safety language moderation content_policy_violation"
    ),
    "guardrail": "guardrail_intervened guardrail",
    "context_overflow": (
        "model_context_window_exceeded context_length_exceeded model_length context_window_exceeded "
        "context_length context_overflow"
    ),
    "pause_turn": "pause_turn",
}
_BROKEN: Final[dict[ErrorKind, str]] = {
    "stream_cut": "abort aborted cancel cancelled canceled interrupted disconnected incomplete eos_not_found",
    "overloaded": (
        "error engine_error internal_error server_error network_error insufficient_system_resource overloaded failed "
        "unavailable timeout upstream_error"
    ),
    "malformed_reply": (
        "malformed_model_output malformed_tool_use malformed_function_call unexpected_tool_call malformed_response "
        "missing_thought_signature too_many_tool_calls repetition repetition_truncation"
    ),
}


def _normal(word: object) -> str:
    return re.sub("[^a-z0-9]", "", str(word)[:100].lower())


_KNOWN: Final[dict[str, ModelStop]] = {
    _normal(word): stop for stop, words in _WORDS.items() for word in words.split()
}
_BROKEN_KIND: Final[dict[str, ErrorKind]] = {
    _normal(word): kind for kind, words in _BROKEN.items() for word in words.split()
}


def model_stop(word: object, own: Mapping[str, ModelStop]) -> ModelStop | None:
    """Return the reason for which a reply ended, or None for a word that is no end; `own` is the adapter's table."""
    if isinstance(word, str) and word in own:
        return own[word]
    return _KNOWN.get(_normal(word)) if word is not None else None


def broken_stop(word: object) -> tuple[ErrorKind, str]:
    """Return the kind of error, and its message, for a stop reason that is no end."""
    known = _BROKEN_KIND.get(_normal(word))
    if known is None:
        # Whoever pays for it should not pay for ever: after its attempts a run waits for a person.
        return "malformed_reply", f"the answer ended with the unknown stop reason {str(word)[:100]!r}"
    return known, f"the answer is broken: the provider stopped it with {str(word)[:100]!r}"
