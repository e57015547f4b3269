"""Log of Temporal's SDK: in words, in Python's logs, and not once for each repeated call."""

import logging
from types import SimpleNamespace
from typing import Any

import pytest

from perdure.workers.sdk import SDK_LOGGER, _InWords, make_runtime

REFUSED = 'Status { code: Unavailable, message: "tcp connect error", ConnectError("Connection refused") }'


def _record(message: str, **fields: Any) -> logging.LogRecord:
    record = logging.LogRecord(SDK_LOGGER, logging.WARNING, "(sdk-core)", 0, message, (), None)
    record.__dict__["temporal_log"] = SimpleNamespace(message=message, fields=fields)
    return record


def test_server_that_is_away_is_one_record() -> None:
    """However many calls are repeated, half a minute has one record, and it tells no transport's innards."""
    now = 100.0
    words = _InWords(lambda: now)
    shown: list[str] = []
    for second in range(90):
        now = 100.0 + second
        for message in (
            f"gRPC call poll_workflow_task_queue retried {second + 5} times",
            "Network error while completing activity",
        ):
            record = _record(message, error=REFUSED)
            if words.filter(record):
                shown.append(record.getMessage())
    expected = "the Temporal server does not answer (connection refused); calls to it are tried again"
    assert shown == [expected] * 3


@pytest.mark.parametrize(
    ("fields", "cause"),
    [
        ({"error": "Status { code: Unavailable }"}, "not available"),
        ({"error": "dns error: failed to lookup"}, "no such host"),
        ({"error": "Status { code: ResourceExhausted }"}, "it is busy"),
        ({}, "no answer"),
    ],
)
def test_cause_is_in_words(fields: dict[str, Any], cause: str) -> None:
    record = _record("gRPC call query_workflow retried 6 times", **fields)
    assert _InWords().filter(record)
    assert f"({cause})" in record.getMessage()


def test_other_records_keep_their_first_line() -> None:
    """Fields of the SDK quote errors, and with them payloads: they are left out. The level stays."""
    record = _record("Failing workflow task\nmore", failure='Failure { message: "the letter" }')
    assert _InWords().filter(record)
    assert (record.getMessage(), record.levelno) == ("Temporal's SDK: Failing workflow task", logging.WARNING)
    slow = _record("[TMPRL1104] 01a2:4:1 Workflow task duration exceeded 5 seconds.")
    assert _InWords().filter(slow)
    assert slow.getMessage().startswith("a workflow task took more than 5 seconds: ")
    own = logging.LogRecord(SDK_LOGGER, logging.WARNING, "x", 1, "from Python: %s", ("as it is",), None)
    assert _InWords().filter(own)
    assert own.getMessage() == "from Python: as it is"


def test_filter_is_added_once() -> None:
    """Each runtime of a process forwards to one logger."""
    for _ in range(2):
        make_runtime()
    assert len([known for known in logging.getLogger(SDK_LOGGER).filters if isinstance(known, _InWords)]) == 1
