"""Policy: who may call which tool on what. First match wins; nothing matching is a denial."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Literal

from pydantic import BaseModel, ConfigDict

Verdict = Literal["allow", "deny", "ask"]


class Rule(BaseModel):
    """One line of a policy. `role`, `tool` and `resource` are shell patterns ("refund_*")."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    tool: str = "*"
    role: str = "*"
    """Matched against each of the run's `roles`; "*" also matches a run without any."""
    resource: str = "*"
    """Matched against the argument the tool names as its resource."""

    def matches(self, tool: str, roles: Sequence[str], resource: str | None) -> bool:
        """Whether this line speaks about the call."""
        return (
            fnmatchcase(tool, self.tool)
            and (self.role == "*" or any(fnmatchcase(role, self.role) for role in roles))
            and (self.resource == "*" or (resource is not None and fnmatchcase(resource, self.resource)))
        )


class Policy(BaseModel):
    """An ordered list of rules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...] = ()

    def verdict(self, tool: str, roles: Sequence[str] = (), resource: str | None = None) -> Verdict:
        """What the first matching rule says; "deny" when none matches."""
        matching = (rule for rule in self.rules if rule.matches(tool, roles, resource))
        first = next(matching, None)
        return "deny" if first is None else first.verdict
