"""Refusals of Bedrock, and of gateways in front of it, in the form that botocore reads."""

import json
from typing import Any, cast

from perdure.providers import read_error


def tell_words(response_dict: dict[str, Any], **_: Any) -> None:
    """Put the words of a refusal where botocore looks for them, whatever the shape of its body.

    A handler of botocore's event "before-parse". botocore takes the body for a JSON object with a `message`; a proxy
    or a gateway may send anything.
    """
    if response_dict.get("status_code", 200) < 300:
        return
    body = response_dict.get("body")
    error = read_error(body if isinstance(body, bytes) else b"")
    try:
        known = json.loads(body or b"{}")
    except ValueError:
        known = None
    named = cast("dict[str, Any]", known) if isinstance(known, dict) else {}
    codes = (str(named[key]) for key in ("__type", "code") if isinstance(named.get(key), str))
    code = next(codes, None)
    code = code or next((code for code in error.codes if not code.isdigit()), "")
    response_dict["body"] = json.dumps({"message": error.words, "__type": code}).encode()
