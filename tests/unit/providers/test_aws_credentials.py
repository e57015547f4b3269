"""AWS credentials: renewed ones are used, and a busy service that gives them is no missing key."""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import botocore.exceptions as boto_errors
import botocore.utils
import pytest

from perdure.activities.providers._aws_credentials import credentials_failure
from perdure.activities.providers.bedrock import BedrockModel
from perdure.errors import RULES, ErrorKind, ModelError
from perdure.model import ModelConfig, ModelRequest

from .dialects import BEDROCK, StubReply
from .server import Stub

CONFIG = ModelConfig(name="bedrock:anthropic.claude-test-1:0")
OK = BEDROCK.answer(StubReply(text=("ok",)))
EXPIRED = BEDROCK.refusal(403, "ExpiredTokenException", "The security token in the request is expired")


Form = dict[str, list[str]]
Answering = Callable[[str, str, Form], tuple[int, str]]


def always(status: int, text: str) -> Answering:
    """Build the answers of a service that always says the same."""

    def answer(method: str, path: str, form: Form) -> tuple[int, str]:
        return status, text

    return answer


_busy = always(503, "busy")


@dataclass
class Service:
    """A service of AWS that gives credentials: `answer` has status and body for a method, a path and a form."""

    url: str = ""
    answer: Answering = _busy
    requests: list[tuple[str, str, dict[str, list[str]], str]] = field(default_factory=list[Any])


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()

    class Handler(BaseHTTPRequestHandler):
        def _serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length") or 0)).decode()
            form = parse_qs(body)
            signed = self.headers.get("authorization") or ""
            made.requests.append((self.command, self.path, form, signed))
            status, text = made.answer(self.command, self.path, form)
            self.send_response(status)
            self.send_header("content-length", str(len(text.encode())))
            self.send_header("content-type", "text/xml" if text.startswith("<") else "application/json")
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the library's own name
            pass

    for method in ("GET", "PUT", "POST"):
        setattr(Handler, f"do_{method}", Handler._serve)
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    made.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield made
    server.shutdown()
    server.server_close()


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine whose credentials come from files in this folder."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    return tmp_path


async def call(model: BedrockModel) -> None:
    assert [event async for event in model.stream(ModelRequest(config=CONFIG))]


async def failure(model: BedrockModel) -> ModelError:
    with pytest.raises(ModelError) as caught:
        await call(model)
    return caught.value


def write_keys(home: Path, key: str) -> None:
    lines = ["[default]", f"aws_access_key_id = {key}", "aws_secret_access_key = secret", ""]
    (home / "credentials").write_text("\n".join(lines))


def token_answer(key: str, action: str) -> str:
    """Build an answer of the token service."""
    expires = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    return (
        f'<{action}Response xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><{action}Result><Credentials>'
        f"<AccessKeyId>{key}</AccessKeyId><SecretAccessKey>secret</SecretAccessKey>"
        f"<SessionToken>token</SessionToken><Expiration>{expires}</Expiration></Credentials>"
        f"<AssumedRoleUser><Arn>a</Arn><AssumedRoleId>i</AssumedRoleId></AssumedRoleUser>"
        f"</{action}Result></{action}Response>"
    )


async def test_renewed_credentials_file_is_used(server: Stub, home: Path) -> None:
    """After a refusal the next call reads the file again, without a restart."""
    model = BedrockModel(region="eu-central-1", endpoint_url=server.url)
    write_keys(home, "AKIDFIRST")
    server.script(OK, EXPIRED, EXPIRED, OK)
    await call(model)
    write_keys(home, "AKIDOTHER")
    for _ in range(2):
        assert (await failure(model)).kind == "authentication"
    await call(model)
    signers = [request.headers["authorization"].split("Credential=")[1][:9] for request in server.requests]
    assert signers == ["AKIDFIRST", "AKIDFIRST", "AKIDOTHER", "AKIDOTHER"]
    await model.aclose()


async def test_renewed_identity_token_is_used(
    server: Stub, home: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pod's token is exchanged anew once the old one's credentials are refused."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.url)
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/shop")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(home / "token"))
    service.answer = lambda _, __, form: (
        200,
        token_answer(f"ASIA{form['WebIdentityToken'][0]}", "AssumeRoleWithWebIdentity"),
    )
    model = BedrockModel(region="eu-central-1", endpoint_url=server.url)
    (home / "token").write_text("FIRST")
    server.script(OK, EXPIRED, OK)
    await call(model)
    (home / "token").write_text("OTHER")
    assert (await failure(model)).kind == "authentication"
    await call(model)
    signers = [request.headers["authorization"].split("Credential=")[1][:9] for request in server.requests]
    assert signers == ["ASIAFIRST", "ASIAFIRST", "ASIAOTHER"]
    await model.aclose()


async def test_role_is_assumed_with_renewed_keys(
    server: Stub, home: Path, service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The keys behind an assumed role are read again too."""
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", service.url)
    monkeypatch.setenv("AWS_PROFILE", "shop")
    role = ["[profile shop]", "role_arn = arn:aws:iam::1:role/shop", "source_profile = default", ""]
    (home / "config").write_text("\n".join(role))
    refused = (
        "<ErrorResponse><Error><Code>ExpiredToken</Code><Message>expired</Message></Error></ErrorResponse>"
    )
    service.answer = always(403, refused)
    model = BedrockModel(region="eu-central-1", endpoint_url=server.url)
    write_keys(home, "AKIDFIRST")
    assert (await failure(model)).kind == "authentication"
    write_keys(home, "AKIDOTHER")
    service.answer = always(200, token_answer("ASIAROLE", "AssumeRole"))
    server.script(OK)
    await call(model)
    signers = [signed.split("Credential=")[1][:9] for *_, signed in service.requests]
    assert signers == ["AKIDFIRST", "AKIDOTHER"]
    await model.aclose()


async def test_missing_token_file_is_authentication(
    server: Stub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ROLE_ARN", "arn:aws:iam::1:role/shop")
    monkeypatch.setenv("AWS_WEB_IDENTITY_TOKEN_FILE", str(home / "nothing"))
    error = await failure(BedrockModel(region="eu-central-1", endpoint_url=server.url))
    assert error.kind == "authentication"
    assert "nothing" in str(error)


# -- services that are busy


def machine(*, token: int, roles: int, keys: int) -> Callable[..., tuple[int, str]]:
    """Build the answers of a machine's metadata service from its statuses."""
    given = {
        "Code": "Success",
        "Type": "AWS-HMAC",
        "AccessKeyId": "AKIDROLE",
        "SecretAccessKey": "secret",
        "Token": "token",
        "LastUpdated": "2026-01-01T00:00:00Z",
        "Expiration": "2099-01-01T00:00:00Z",
    }

    def answer(method: str, path: str, form: object) -> tuple[int, str]:
        if method == "PUT":
            return token, "token"
        return (roles, "shop-role") if path.endswith("security-credentials/") else (keys, json.dumps(given))

    return answer


@pytest.mark.parametrize(
    ("statuses", "kind"),
    [
        ({"token": 503, "roles": 503, "keys": 503}, "overloaded"),
        ({"token": 200, "roles": 429, "keys": 429}, "overloaded"),
        ({"token": 200, "roles": 200, "keys": 500}, "overloaded"),
        ({"token": 403, "roles": 404, "keys": 404}, "authentication"),
        ({"token": 200, "roles": 404, "keys": 404}, "authentication"),
    ],
)
async def test_busy_metadata_service_is_no_missing_key(
    *,
    server: Stub,
    home: Path,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    statuses: dict[str, int],
    kind: ErrorKind,
) -> None:
    """It passes by itself, so the run tries again; a machine without a role waits for a person."""
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url)
    service.answer = machine(**statuses)
    model = BedrockModel(region="eu-central-1", endpoint_url=server.url)
    with pytest.raises(ModelError) as caught:
        model.check(CONFIG)
    assert caught.value.kind == kind
    asked = len(service.requests)
    model.check(CONFIG)
    assert len(service.requests) == asked, "each call looks them up in its own thread"
    assert (await failure(model)).kind == kind
    service.answer = machine(token=200, roles=200, keys=200)
    server.script(OK)
    await call(model)
    await model.aclose()


@pytest.mark.parametrize(
    ("status", "kind"), [(503, "overloaded"), (429, "overloaded"), (403, "authentication")]
)
async def test_busy_container_service_is_no_missing_key(
    *,
    server: Stub,
    home: Path,
    service: Service,
    monkeypatch: pytest.MonkeyPatch,
    status: int,
    kind: ErrorKind,
) -> None:
    monkeypatch.setattr(botocore.utils.ContainerMetadataFetcher, "SLEEP_TIME", 0)
    monkeypatch.setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", f"{service.url}/keys")
    service.answer = always(status, "no")
    assert (await failure(BedrockModel(region="eu-central-1", endpoint_url=server.url))).kind == kind


def refusal(code: str, status: int) -> boto_errors.ClientError:
    answer: Any = {"Error": {"Code": code}, "ResponseMetadata": {"HTTPStatusCode": status}}
    return boto_errors.ClientError(answer, "AssumeRole")


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (refusal("AccessDenied", 403), "authentication"),
        (refusal("InvalidIdentityToken", 400), "authentication"),
        (refusal("IDPCommunicationError", 400), "overloaded"),
        (refusal("Throttling", 400), "overloaded"),
        (refusal("InternalFailure", 500), "overloaded"),
        (boto_errors.EndpointConnectionError(endpoint_url="https://sts"), "connection"),
        (boto_errors.ReadTimeoutError(endpoint_url="https://sts"), "connection"),
        (boto_errors.CredentialRetrievalError(provider="iam-role", error_msg="no access_key"), "overloaded"),
        (boto_errors.CredentialRetrievalError(provider="custom-process", error_msg="x"), "authentication"),
        (boto_errors.UnauthorizedSSOTokenError(), "authentication"),
        (boto_errors.PartialCredentialsError(provider="env", cred_var="x"), "authentication"),
        (RuntimeError("the refreshed credentials are still expired"), "authentication"),
        (FileNotFoundError("token"), "authentication"),
    ],
    ids=str,
)
def test_failures_of_credentials_have_kinds(error: Exception, kind: ErrorKind) -> None:
    found = credentials_failure(error)
    assert found is not None
    assert found.kind == kind
    assert RULES[kind].transient == (kind != "authentication")


def test_other_errors_are_none_of_credentials() -> None:
    assert credentials_failure(KeyError("x")) is None
    assert credentials_failure(RuntimeError("something else")) is None
