"""Payloads of activities and child runs, decoded where an error can be caught.

The SDK decodes a result while it applies it: a result that cannot be decoded would fail every workflow task from
then on, and not even a cancellation would reach the run. So results come as RawValue, and are decoded here.
"""

from typing import Any, TypeVar

from temporalio import workflow
from temporalio.common import RawValue

_Result = TypeVar("_Result")


def read_payload(raw: RawValue | None, kind: "type[_Result]") -> _Result:
    """Return the decoded value.

    Raises:
        ValueError: the payload cannot be decoded, or has another shape; the message says how.

    """
    if raw is None:
        raise ValueError("there is no result")
    try:
        value: _Result = workflow.payload_converter().from_payload(raw.payload, kind)
    except Exception as error:  # of any converter, also a user's own
        raise ValueError(f"{type(error).__name__}: {error}") from None
    return value


def read_json(raw: RawValue | None) -> Any:
    """Return the decoded JSON value; None where there is no payload. Raise ValueError as `read_payload`."""
    # An activity without a result sends no payload in some languages.
    return None if raw is None else read_payload(raw, object)
