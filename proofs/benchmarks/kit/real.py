"""Real adapters of a subject, pointed at the loopback provider of the suite `wire`.

The harness names the API and the provider's address in the environment. Without them a subject uses its fake model.
"""

import os
from dataclasses import dataclass

API, ADDRESS = "PERDURE_BENCH_API", "PERDURE_BENCH_PROVIDER"
"""Variables of the environment."""

ANTHROPIC, OPENAI, BEDROCK, SCRIPTED = "anthropic", "openai", "bedrock", "scripted"
KEY = "none"
"""Key that the loopback provider takes: it takes any."""
NAMES = {
    ANTHROPIC: "claude-sonnet-5-5",
    OPENAI: "gpt-5.4-mini",
    BEDROCK: "anthropic.claude-sonnet-5-5-v1:0",
    SCRIPTED: "none",
}
"""Name of the model for each API."""
REGION = "us-east-1"


@dataclass(frozen=True)
class Real:
    """API that a subject's model activity calls, and the provider's address."""

    api: str
    address: str

    @property
    def model(self) -> str:
        """Name of the model."""
        return NAMES[self.api]

    @property
    def environment(self) -> dict[str, str]:
        """Variables that tell a subject's process of it; AWS's libraries read keys from there only."""
        keys = {"AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": KEY, "AWS_REGION": REGION}
        return {API: self.api, ADDRESS: self.address, "AWS_DEFAULT_REGION": REGION, **keys}


def real() -> Real | None:
    """Return the API to call for real, or None for the fake model."""
    api = os.environ.get(API)
    return Real(api, os.environ.get(ADDRESS, "")) if api else None
