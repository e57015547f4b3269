"""Policy: rules for tool calls by role, tool and resource. The first match wins; no match is a denial."""

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any, Literal

from pydantic import ConfigDict, field_validator

from perdure.definitions import DefinitionModel

Verdict = Literal["allow", "deny", "ask"]


class Rule(DefinitionModel):
    """Rule of a policy. `role`, `tool` and `resource` are shell patterns ("refund_*")."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    verdict: Verdict
    tool: str = "*"
    role: str = "*"
    """Pattern for the run's `roles`: one of them must match. "*" also matches a run without roles."""
    resource: str = "*"
    """Pattern for the argument that the tool names as its resource."""

    def matches(self, tool: str, roles: Sequence[str], resource: str | None) -> bool:
        """Check whether the rule applies to the call."""
        # A call without a resource matches "*" only: a rule for some resources must not allow it.
        return (
            fnmatchcase(tool, self.tool)
            and (self.role == "*" or any(fnmatchcase(role, self.role) for role in roles))
            and (self.resource == "*" or (resource is not None and fnmatchcase(resource, self.resource)))
        )


class Policy(DefinitionModel):
    """Ordered list of rules."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rules: tuple[Rule, ...] = ()

    @field_validator("rules", mode="before")
    @classmethod
    def _refuse_set(cls, rules: Any) -> Any:
        # The first match wins, and the order of a set differs from process to process.
        if isinstance(rules, set | frozenset):
            raise ValueError("rules are a list: the first match wins, and a set has no order")
        return rules

    def verdict(self, tool: str, roles: Sequence[str] = (), resource: str | None = None) -> Verdict:
        """Return the verdict of the first rule that applies; "deny" without one."""
        matching = (rule for rule in self.rules if rule.matches(tool, roles, resource))
        first = next(matching, None)
        return "deny" if first is None else first.verdict
