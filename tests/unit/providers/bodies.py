"""Bodies of requests, as each built-in adapter builds them, without a server."""

from typing import Any

from perdure.activities.providers import _anthropic_request as anthropic
from perdure.activities.providers import _bedrock_request as bedrock
from perdure.activities.providers import _gemini_request as gemini
from perdure.activities.providers import _openai_request as openai
from perdure.activities.providers import _responses_request as responses
from perdure.model import ModelRequest

from .refusals import REFUSALS


def body_of(request: ModelRequest) -> dict[str, Any]:
    """Return the body that the adapter of the request's provider sends."""
    match request.config.provider:
        case "anthropic":
            return anthropic.build_body(request, anthropic.read_config(request.config))
        case "bedrock":
            return bedrock.build_body(request, bedrock.read_config(request.config))
        case "gemini":
            return gemini.build_body(request, gemini.read_config(request.config))
        case "responses":
            return responses.build_body(request, responses.read_config(request.config))
        case provider:
            options = openai.read_config(request.config, provider)
            return openai.build_body(request, options, provider)


def taken_body(request: ModelRequest) -> dict[str, Any]:
    """Return the body, after the provider has checked it.

    Raises:
        Refused: the provider does not take it.

    """
    body = body_of(request)
    REFUSALS[request.config.provider](body)
    return body
