"""Models of Pydantic AI for the suite `wire`; the subjects `pydantic_ai` and `dbos` share them."""

from pydantic_ai.models import Model

from proofs.benchmarks.kit.real import KEY, REGION, Real, real


def _model_of(real: Real) -> Model:
    """Return the framework's own model of that API, pointed at the provider."""
    match real.api:
        case "anthropic":
            from pydantic_ai.models.anthropic import AnthropicModel
            from pydantic_ai.providers.anthropic import AnthropicProvider

            return AnthropicModel(real.model, provider=AnthropicProvider(api_key=KEY, base_url=real.address))
        case "openai":
            from pydantic_ai.models.openai import OpenAIChatModel
            from pydantic_ai.providers.openai import OpenAIProvider

            provider = OpenAIProvider(api_key=KEY, base_url=f"{real.address}/v1")
            return OpenAIChatModel(real.model, provider=provider)
        case _:
            from pydantic_ai.models.bedrock import BedrockConverseModel
            from pydantic_ai.providers.bedrock import BedrockProvider

            provider = BedrockProvider(region_name=REGION, base_url=real.address)
            return BedrockConverseModel(real.model, provider=provider)


_FOUND = real()
REAL_MODEL = _model_of(_FOUND) if _FOUND else None
"""Model of the agents, or None for the fake. Made here, as a workflow's sandbox does not run this module."""
