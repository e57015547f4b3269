"""S3Blobs against a real HTTP server: moto on the loopback."""

import os
from collections.abc import Generator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from moto.s3.models import s3_backends
from moto.server import ThreadedMotoServer

from perdure.activities.content.blobs import S3Blobs, blob_name
from perdure.testing import BLOB_STORE_CHECKS, DATED_BLOB_STORE_CHECKS
from perdure.testing.blob_stores import BlobStoreCheck
from perdure.workers.observe.lifecycle import find_rules


@pytest.fixture(scope="module")
def endpoint() -> Generator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
        server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
        server.start()
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
        server.stop()


@pytest.fixture(scope="module")
def s3(endpoint: str) -> Generator[Any]:
    session: Any = boto3.session.Session(region_name="us-east-1")
    client = session.client("s3", endpoint_url=endpoint)
    client.create_bucket(Bucket="perdure")
    yield client
    client.close()


def set_age(bucket: str, key: str, age: timedelta) -> None:
    """Make the object that old, in moto's memory: S3 lets nobody choose a date."""
    stored: Any = s3_backends["123456789012"]["aws"].get_object(bucket, key)
    stored.last_modified = datetime.now(UTC).replace(tzinfo=None) - age


def _store(endpoint: str, *, bucket: str = "perdure", prefix: str = "blobs") -> S3Blobs:
    return S3Blobs(bucket, prefix, endpoint, "us-east-1")


async def test_prefix_holds_the_blobs(s3: Any, endpoint: str) -> None:
    data = os.urandom(500_000)
    name = await _store(endpoint).put(data)
    assert name == blob_name(data)
    assert s3.head_object(Bucket="perdure", Key=f"blobs/{name}")["ContentLength"] == len(data)
    assert await _store(endpoint).get(name) == data


@pytest.mark.parametrize(
    "check", [*BLOB_STORE_CHECKS, *DATED_BLOB_STORE_CHECKS], ids=lambda check: check.__name__
)
async def test_s3_keeps_the_contract(s3: Any, endpoint: str, check: BlobStoreCheck) -> None:
    await check(lambda: _store(endpoint, prefix="contract"))


async def test_existing_blob_is_not_uploaded(s3: Any, endpoint: str) -> None:
    name = await _store(endpoint).put(b"once")
    before = s3.head_object(Bucket="perdure", Key=f"blobs/{name}")["LastModified"]
    s3.put_object_tagging(
        Bucket="perdure", Key=f"blobs/{name}", Tagging={"TagSet": [{"Key": "seen", "Value": "yes"}]}
    )
    await _store(endpoint).put(b"once")
    tags = s3.get_object_tagging(Bucket="perdure", Key=f"blobs/{name}")["TagSet"]
    assert tags == [{"Key": "seen", "Value": "yes"}]  # an upload would have dropped them
    assert s3.head_object(Bucket="perdure", Key=f"blobs/{name}")["LastModified"] == before


async def test_missing_object_is_a_key_error(s3: Any, endpoint: str) -> None:
    with pytest.raises(KeyError, match="s3://perdure/blobs/"):
        await _store(endpoint).get("0" * 64)


async def test_damaged_object_is_an_error(s3: Any, endpoint: str) -> None:
    name = await _store(endpoint).put(b"content")
    s3.put_object(Bucket="perdure", Key=f"blobs/{name}", Body=b"c0ntent")
    with pytest.raises(OSError, match="damaged"):
        await _store(endpoint).get(name)


@pytest.mark.parametrize("damage", [b"", b"conten", b"c0ntent", b"\0" * 7])
async def test_storing_again_repairs_an_object(s3: Any, endpoint: str, damage: bytes) -> None:
    name = await _store(endpoint).put(b"content")
    s3.put_object(Bucket="perdure", Key=f"blobs/{name}", Body=damage)
    await _store(endpoint).put(b"content")
    assert await _store(endpoint).get(name) == b"content"


@pytest.mark.parametrize(("age", "renewed"), [(timedelta(hours=23), False), (timedelta(hours=25), True)])
@pytest.mark.parametrize("by", ["put", "renew"])
async def test_old_objects_in_use_get_a_new_date(
    s3: Any, endpoint: str, age: timedelta, renewed: bool, by: str
) -> None:
    """Storing and renewing give an object a new date, at most once a day."""
    data = os.urandom(100)
    name = await _store(endpoint).put(data)
    set_age("perdure", f"blobs/{name}", age)
    store = _store(endpoint)
    await (store.put(data) if by == "put" else store.renew(name))
    found = s3.head_object(Bucket="perdure", Key=f"blobs/{name}")
    assert (datetime.now(UTC) - found["LastModified"] < timedelta(minutes=5)) is renewed
    assert await _store(endpoint).get(name) == data


async def test_other_objects_are_not_listed(s3: Any, endpoint: str) -> None:
    """What lies beside the blobs is not the store's, and no collector sees it."""
    for key in ("listed/notes.txt", f"listed/{'0' * 63}", f"listed/sub/{'0' * 64}", "0" * 64):
        s3.put_object(Bucket="perdure", Key=key, Body=b"theirs")
    name = await _store(endpoint, prefix="listed").put(b"ours")
    listed = [blob.name async for blob in _store(endpoint, prefix="listed").list_blobs()]
    assert listed == [name]


async def test_prefix_may_be_empty(s3: Any, endpoint: str) -> None:
    name = await _store(endpoint, prefix="").put(b"at the root")
    assert s3.head_object(Bucket="perdure", Key=name)["ContentLength"] == 11


async def test_cached_blobs_need_no_request(s3: Any, endpoint: str) -> None:
    store = _store(endpoint)
    name = await store.put(b"kept in memory")
    s3.delete_object(Bucket="perdure", Key=f"blobs/{name}")
    assert await store.get(name) == b"kept in memory"


def _rule(**fields: Any) -> dict[str, Any]:
    return {"ID": "r", "Status": "Enabled", "Filter": {"Prefix": ""}, **fields}


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ([], []),
        ([_rule(Expiration={"Days": 31})], ["rule 'r' deletes blobs after 31 days"]),
        (
            [_rule(Filter={"Prefix": "blobs/"}, Expiration={"Days": 2})],
            ["rule 'r' deletes blobs after 2 days"],
        ),
        (
            [_rule(Filter={"Prefix": "blobs/0"}, Expiration={"Days": 2})],
            ["rule 'r' deletes blobs after 2 days"],
        ),
        (
            [_rule(Transitions=[{"Days": 90, "StorageClass": "GLACIER"}])],
            ["rule 'r' puts away blobs after 90 days"],
        ),
        ([_rule(Transitions=[{"Days": 90, "StorageClass": "STANDARD_IA"}])], []),
        ([_rule(Filter={"Prefix": "logs/"}, Expiration={"Days": 2})], []),
        ([_rule(Status="Disabled", Expiration={"Days": 2})], []),
        ([_rule(Filter={"Tag": {"Key": "old", "Value": "yes"}}, Expiration={"Days": 2})], []),
        ([_rule(AbortIncompleteMultipartUpload={"DaysAfterInitiation": 7})], []),
        ([_rule(NoncurrentVersionExpiration={"NoncurrentDays": 7})], []),
    ],
)
async def test_rules_that_take_blobs_are_found(
    s3: Any, endpoint: str, rules: list[dict[str, Any]], found: list[str]
) -> None:
    """A lifecycle rule counts if it takes away blobs of this prefix, or some of them."""
    if rules:
        s3.put_bucket_lifecycle_configuration(Bucket="perdure", LifecycleConfiguration={"Rules": rules})
    else:
        s3.delete_bucket_lifecycle(Bucket="perdure")
    assert list(map(str, await find_rules(_store(endpoint)))) == found
