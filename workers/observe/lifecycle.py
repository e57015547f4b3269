"""Check of a bucket's lifecycle rules: what they would delete, or put away, that a run still needs.

A rule goes by a blob's date alone. A run's blobs have dates from its start on, or from its last continue-as-new. So a
rule of N days takes what an open run needs when that run goes on for N days without continuing as new, and what a
closed run needs when its history is kept for longer than N days.
"""

import asyncio
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from temporalio.api.workflowservice.v1 import CountWorkflowExecutionsRequest, DescribeNamespaceRequest
from temporalio.client import Client

from perdure.blobs import RENEW_AFTER

from ...activities.content.s3_blobs import S3Blobs

ADVICE = "use `perdure blobs gc` in its place: it knows what is needed"
_PUT_AWAY = ("GLACIER", "DEEP_ARCHIVE")
"""Storage classes from which nothing can be read at once."""


@dataclass(frozen=True, kw_only=True)
class BlobRule:
    """Rule of a bucket that takes blobs away by their age."""

    id: str
    days: int
    verb: str

    def __str__(self) -> str:
        return f"rule {self.id!r} {self.verb} blobs after {self.days} days"


async def find_rules(store: S3Blobs) -> list[BlobRule]:
    """Return the bucket's active rules that take blobs of this store away.

    Raises:
        PermissionError: the rules cannot be read.

    """
    return list(_blob_rules(await asyncio.to_thread(_read_rules, store), store.prefix))


def _read_rules(store: S3Blobs) -> list[Mapping[str, Any]]:
    from botocore.exceptions import ClientError

    try:
        return list(store.s3.get_bucket_lifecycle_configuration(Bucket=store.bucket).get("Rules", ()))
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code")
        if code == "NoSuchLifecycleConfiguration":
            return []
        raise PermissionError(
            f"the lifecycle rules of {store.bucket!r} cannot be read ({code}): allow s3:GetLifecycleConfiguration"
        ) from None


def _blob_rules(rules: list[Mapping[str, Any]], prefix: str) -> Iterator[BlobRule]:
    for rule in rules:
        if rule.get("Status") != "Enabled" or not _covers(rule, prefix):
            continue
        name = str(rule.get("ID", "without an id"))
        expiration = rule.get("Expiration", {})
        if "Days" in expiration:
            yield BlobRule(id=name, days=int(expiration["Days"]), verb="deletes")
        elif "Date" in expiration:
            # At that date it deletes everything, however young.
            yield BlobRule(id=name, days=0, verb="deletes")
        for transition in rule.get("Transitions", ()):
            if transition.get("StorageClass") in _PUT_AWAY:
                yield BlobRule(id=name, days=int(transition.get("Days", 0)), verb="puts away")


def _covers(rule: Mapping[str, Any], prefix: str) -> bool:
    """Check whether the rule applies to objects of this prefix, or to some of them."""
    filter_: Mapping[str, Any] = rule.get("Filter", {})
    both: Mapping[str, Any] = filter_.get("And", {})
    if filter_.get("Tag") or both.get("Tags"):
        return False  # blobs have no tags
    covered = str(rule.get("Prefix") or filter_.get("Prefix") or both.get("Prefix") or "")
    return prefix.startswith(covered) or covered.startswith(prefix)


async def what_is_taken(temporal: Client, rule: BlobRule) -> str:
    """Return in words what the rule takes away that is needed, now and from now on."""
    oldest = datetime.now(UTC) - timedelta(days=rule.days) + RENEW_AFTER
    query = f"ExecutionStatus = 'Running' AND StartTime < '{oldest.isoformat()}'"
    request = CountWorkflowExecutionsRequest(namespace=temporal.namespace, query=query)
    losing = (await temporal.workflow_service.count_workflow_executions(request)).count
    described = await temporal.workflow_service.describe_namespace(
        DescribeNamespaceRequest(namespace=temporal.namespace)
    )
    retention = described.config.workflow_execution_retention_ttl.ToTimedelta()
    texts = [str(rule)]
    if losing:
        texts.append(f"{losing} open runs began before that and may have lost blobs already")
    if retention >= timedelta(days=rule.days):
        texts.append(
            f"histories of closed runs are kept for {retention.days} days, and cannot be read to the end"
        )
    if not losing:
        texts.append("a run or an idle session that goes on for longer will lose its blobs")
    return "; ".join(texts)
