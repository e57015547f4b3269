"""Identity of acts: keys that every repetition of a call shares, and that no other call has. Pure.

The rule: key = root family + path of logical names + call.

- The root family is the root run, by namespace, workflow id and first execution. Continue-as-new and a reset keep
  it; a new run of the same id has another.
- The path names the runs from the root down to the caller, without their attempts: a node that is run again has the
  name of its first attempt.
- The call is its place in the caller's run and its contents: after a reset, another call in the place of an earlier
  one is another act.

Nothing of an attempt, a process or a run id is part of it. The attempts are counted apart: an activity counts its
own, and is given the `earlier_attempts` before them, as nodes that are run again and resets make them.
"""

from hashlib import sha256

_DIGEST_CHARS = 32


def root_identity(namespace: str, workflow_id: str, first_execution_run_id: str) -> str:
    """Return the identity of a root run."""
    return _digest(namespace, workflow_id, first_execution_run_id)


def child_identity(identity: str, name: str) -> str:
    """Return the identity of a run that the run with this identity starts under that logical name."""
    return _digest(identity, name)


def idempotency_key(identity: str, name: str, contents: str) -> str:
    """Return the key of a call of the run with this identity: its logical name there, and a digest of its contents."""
    return f"perdure-{_digest(identity, name, contents)}"


def _digest(*parts: str) -> str:
    return sha256("\0".join(parts).encode()).hexdigest()[:_DIGEST_CHARS]
