"""AWS credentials: botocore's own chain, and its failures told apart.

A missing or refused credential waits for a person. A service that gives credentials and is busy, or is not reached,
passes by itself: the machine's metadata service, a container's, the token service behind an assumed role.
"""

import os
import re
from typing import Any, Final, cast

import botocore.exceptions as boto_errors
import urllib3
import urllib3.exceptions
from botocore.utils import METADATA_BASE_URL, METADATA_BASE_URL_IPv6, resolve_imds_endpoint_mode

from perdure.errors import ErrorKind, ModelError

_NO_CREDENTIALS: Final = (
    "no AWS credentials found: set AWS_PROFILE, AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY, or "
    "AWS_BEARER_TOKEN_BEDROCK in the worker's environment and restart it"
)
_REFUSED: Final = (
    "the AWS credentials cannot be used: renew them, in their file or at their source, and resume"
)
_BUSY: Final = "the service that gives the AWS credentials does not answer now"

_STATUS: Final = re.compile(r"non 200 response (\d{3})")
_FROM_METADATA: Final = ("iam-role", "container-role")
"""Sources of credentials, as botocore names them, that are services beside the machine or container."""
_BUSY_CODES: Final = frozenset(
    {
        "IDPCommunicationError",  # the token service did not reach the identity provider; it comes with status 400
        "InternalFailure",
        "RequestLimitExceeded",
        "ServiceUnavailable",
        "Throttling",
        "ThrottlingException",
        "TooManyRequestsException",
    }
)


def require_credentials(session: Any) -> None:
    """Find the credentials of a boto3 session, and renew those that expire soon.

    This may ask services, and takes as long as they need.

    Raises:
        ModelError: "authentication" where a person must act; "overloaded" or "connection" where time helps.

    """
    try:
        found = session.get_credentials()
        if found is not None:
            found.get_frozen_credentials()
    except Exception as error:
        failure = credentials_failure(error)
        if failure is None:
            raise
        raise failure from None
    if found is None:
        # botocore takes a metadata service that refuses for one that is not there.
        if _is_metadata_service_busy(session):
            raise ModelError("overloaded", f"{_BUSY}: the machine's metadata service is busy")
        raise ModelError("authentication", _NO_CREDENTIALS)


def credentials_failure(error: Exception) -> ModelError | None:
    """Return the failure for an error of the search for credentials; None for an error that is none of it."""
    kind = _kind(error)
    if kind is None:
        return None
    advice = _REFUSED if kind == "authentication" else _BUSY
    return ModelError(kind, f"{advice} ({type(error).__name__}: {error})")


def _kind(error: Exception) -> ErrorKind | None:
    match error:
        case boto_errors.ClientError():
            return _kind_of_refusal(error)
        case boto_errors.CredentialRetrievalError() | boto_errors.MetadataRetrievalError():
            return _kind_of_retrieval(str(error))
        case boto_errors.ConnectionError() | boto_errors.HTTPClientError():
            return "connection"
        case (
            boto_errors.NoCredentialsError()
            | boto_errors.PartialCredentialsError()
            | boto_errors.ProfileNotFound()
            | boto_errors.ConfigNotFound()
            | boto_errors.ConfigParseError()
            | boto_errors.InvalidConfigError()
            | boto_errors.UnknownCredentialError()
            | boto_errors.SSOError()
            | boto_errors.TokenRetrievalError()
            | OSError()  # a token's file is missing
        ):
            return "authentication"
        case RuntimeError() if "credentials" in str(error):
            return "authentication"  # renewed ones that have expired too
        case _:
            return None


def _kind_of_refusal(error: boto_errors.ClientError) -> ErrorKind:
    """Return the kind of a refusal of the token service."""
    answer = cast("dict[str, Any]", error.response)
    code = answer.get("Error", {}).get("Code", "")
    return _kind_of_status(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0), code)


def _kind_of_retrieval(message: str) -> ErrorKind:
    if status := _STATUS.search(message):
        return _kind_of_status(int(status[1]))
    is_service = "container metadata" in message or any(name in message for name in _FROM_METADATA)
    return "overloaded" if is_service else "authentication"


def _kind_of_status(status: int, code: str = "") -> ErrorKind:
    return "overloaded" if _is_busy(status) or code in _BUSY_CODES else "authentication"


def _is_busy(status: int) -> bool:
    return status == 429 or status >= 500


def _is_metadata_service_busy(session: Any) -> bool:
    """Ask the machine's metadata service whether it is there, and has a role to give credentials for."""
    if os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true":
        return False
    core = session._session
    usual = METADATA_BASE_URL_IPv6 if resolve_imds_endpoint_mode(core) == "ipv6" else METADATA_BASE_URL
    base = (core.get_config_variable("ec2_metadata_service_endpoint") or usual).rstrip("/")
    with urllib3.PoolManager(timeout=1.0, retries=False) as pool:
        try:
            lifetime = {"x-aws-ec2-metadata-token-ttl-seconds": "60"}
            token = pool.request("PUT", f"{base}/latest/api/token", headers=lifetime)
            headers = {"x-aws-ec2-metadata-token": token.data.decode()} if token.status == 200 else {}
            roles = pool.request("GET", f"{base}/latest/meta-data/iam/security-credentials/", headers=headers)
        except (urllib3.exceptions.HTTPError, UnicodeError, ValueError):
            return False
    # With a role its credentials are there too: it was busy a moment ago.
    return _is_busy(token.status) or _is_busy(roles.status) or roles.status == 200
