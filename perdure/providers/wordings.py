"""Wordings by which providers say why they refuse. Pure.

Few providers send a code for these, so their words are matched. Each pattern stands for a family of wordings that was
seen with a provider, a gateway or an inference server. A pattern must not match what those say of other troubles: the
tests hold wordings of both kinds.
"""

import re
from collections.abc import Sequence
from typing import Final


def _any_of(patterns: Sequence[str]) -> "re.Pattern[str]":
    return re.compile("|".join(f"(?:{pattern})" for pattern in patterns))


_OVERFLOW: Final = _any_of(
    (
        r"(?:prompt|input|conversation|request|messages?) (?:is|are|was) too long",
        r"too long; exceeded",
        r"prompt too long",
        r"input length exceeds",
        r"input length and .{0,40}exceed",
        r"input and output tokens exceed",
        r"input tokens? (?:count )?exceed",
        r"input token count .{0,40}exceeds",
        r"too many (?:total text bytes|input tokens|tokens)\b",
        r"exceeds? (?:the |your |our |this |its )?(?:model'?s? |maximum |max |available |input )*context",
        r"maximum context (?:length|window|size)",
        r"context (?:length|window|size) (?:is |was |has been |limit )*(?:exceed|overflow|reached)",
        r"context_(?:length|window|size)_?exceeded",
        r"exceed_context_size",
        r"context overflow|contextwindowexceeded",
        r"reached context length",
        r"(?:longer|larger|greater) than the (?:model'?s? |maximum |max |available )*(?:context|model length)",
        r"tokens must be at least 1, got -",
        r"exceeds? the (?:maximum|max) (?:allowed )?number of (?:input )?tokens",
        r"number of (?:input )?tokens .{0,40}exceed",
        r"maximum prompt length",
        r"exceeded model token limit",
        r"tokens_limit_reached|max_prompt_tokens_exceeded|string_above_max_length",
        r"too large (?:for|to fit)(?: in| into)?(?: the| this)?(?: \S{1,80})? (?:model|context)",
        r"request (?:body )?too large for",
        r"input is too large to process",
        r"reduce the length of (?:the |your )?(?:messages|prompt|input)",
        r"reduce your (?:message|prompt) (?:size|length)",
        r"(?:inputs|prompt)[`'\"]? must have (?:less|fewer) than \d+ tokens",
        r"total number of tokens .{0,60}cannot exceed",
    )
)
_PAYMENT: Final = _any_of(
    (
        r"credit balance",
        (
            r"(?:insufficient|not enough|no more|no|out of|low on|used all available|requires? more) "
            r"(?:\w+ )?(?:credits?|balance|funds)\b"
        ),
        (
            r"(?:credits?|balance|funds) (?:is |are |have been |has been )?"
            r"(?:insufficient|exhausted|depleted|too low|not enough|used up)"
        ),
        r"(?:add|purchase|buy) (?:more )?(?:credits|funds)",
        r"top[- ]up",
        (
            r"(?:spend|spending|usage|billing|budget)[ _](?:hard[ _])?(?:limits?|cap)\b.{0,40}"
            r"(?:reached|exceeded|hit|regain)"
        ),
        (
            r"(?:reached|exceeded|hit|over) (?:its |your |the |their )?(?:\w+ ){0,4}"
            r"(?:spend|spending|usage|billing|budget)[ _](?:hard[ _])?(?:limits?|cap)\b"
        ),
        r"billing (?:is |has been |account )?(?:not active|not enabled|disabled|hard limit)",
        r"(?:plan and|enable|check your|& ?) ?billing",
        r"payment (?:is )?(?:required|overdue|instrument|method)|invalid_payment_instrument",
        r"account (?:is )?(?:overdue|in arrears|in debt)|overdue[- ]payment|arrearage",
        r"unpaid (?:invoice|bill|balance)",
    )
)
_FILTERED: Final = _any_of(
    (
        r"content[ _-]?(?:management|filter(?:ing|ed|s)?|moderation|safety)\b",
        r"content[ _-]policy",
        r"usage (?:policy|policies|guidelines)",
        r"responsible ?ai",
        r"\bflagged\b",
        r"inappropriate content",
        r"content exists risk",
        r"considered high risk",
        r"data_?inspection_?failed",
        r"(?:our |the )?safety (?:system|filter|policy|policies|guidelines|checks?)",
        r"safety_(?:check|violations?)",
        r"prohibited[ _]content|prompt was blocked|blocked by .{0,30}guardrail",
        r"moderation_blocked|sensitive (?:content|words?)",
    )
)
_ABOUT_PARAMETER: Final = re.compile(
    r"(?:unknown|unrecognized|unexpected|extra|invalid|unsupported) (?:request )?"
    r"(?:parameter|argument|field|key|input|name|value)|not permitted|(?:is|are) not supported|does not support"
)
_NOT_FOUND: Final = _any_of(
    (
        r"model identifier is invalid",
        r"model .{0,80}(?:does not exist|not found|is not available|has been (?:retired|deprecated|removed))",
        r"(?:no such|unknown|invalid|unsupported) model\b",
        r"not a valid model",
    )
)
_ACCOUNT: Final = _any_of(
    (
        (
            r"(?:organization|account|workspace|project|api key|key) (?:has been |is |was )?"
            r"(?:disabled|deactivated|suspended|blocked|revoked|restricted|terminated|expired)"
        ),
        r"(?:invalid|incorrect|wrong|expired|missing) (?:x-)?api[- _]?key",
        r"api[- _]key (?:is )?(?:not valid|invalid|expired|missing)",
    )
)


def is_context_overflow(message: str) -> bool:
    """Return whether the message says that the conversation does not fit the model's context window."""
    return _OVERFLOW.search(message.lower()) is not None


def is_payment(message: str) -> bool:
    """Return whether the message says that money, credit or a spend limit is in the way."""
    return _PAYMENT.search(message.lower()) is not None


def is_filtered(message: str) -> bool:
    """Return whether the message says that a filter of the provider refuses the content."""
    lowered = message.lower()
    return _FILTERED.search(lowered) is not None and _ABOUT_PARAMETER.search(lowered) is None


def is_unknown_model(message: str) -> bool:
    """Return whether the message says that there is no such model."""
    return _NOT_FOUND.search(message.lower()) is not None


def is_account(message: str) -> bool:
    """Return whether the message says that the key or the account is not, or no longer, good."""
    return _ACCOUNT.search(message.lower()) is not None
