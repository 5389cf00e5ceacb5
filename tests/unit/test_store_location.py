"""What REHOST_STORE_URL may say."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from rehost.replication.backends.location import Bucket, location
from rehost.replication.open_store import open_store
from rehost.settings import Settings


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("/srv/store", Path("/srv/store")),
        ("store", Path("store")),
        ("file:///srv/store", Path("/srv/store")),
        ("s3://bucket", Bucket("bucket")),
        ("s3://bucket/", Bucket("bucket")),
        ("s3://my.bucket/a/b_c/", Bucket("my.bucket", "a/b_c")),
        (
            "s3://bucket/p?endpoint=http://127.0.0.1:9000&region=eu-1",
            Bucket("bucket", "p", "http://127.0.0.1:9000", "eu-1"),
        ),
    ],
)
def test_a_folder_or_a_bucket(url: str, place: Path | Bucket) -> None:
    assert location(url) == place


@pytest.mark.parametrize(
    "url",
    [
        "https://bucket/x",
        "s3://",
        "s3://B/x",
        "s3://bucket:80/x",
        "s3://bucket/../x",
        "s3://bucket/a//b",
        "s3://bucket/.a",
        "s3://bucket/x#y",
        "s3://bucket/x?acl=public",
        "s3://bucket/x?region=a&region=b",
        "s3://bucket/x?endpoint=127.0.0.1:9000",
        "s3://bucket/x?endpoint=ftp://h",
        "s3://bucket/x?endpoint=http://h/path",
        "s3://key:hunter2@bucket/x",
        "s3://key%3Ahunter2%40bucket/x",
        "s3://bucket/x?endpoint=http://key:hunter2@host",
        "s3://bucket/x?endpoint=http%3A%2F%2Fkey:hunter2%2540host",
    ],
)
def test_anything_else_is_refused_and_no_password_repeated(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        location(url)
    with pytest.raises(ValidationError) as setting:
        Settings(store_url=url)
    assert "hunter2" not in str(refused.value) + str(setting.value)


def test_the_store_of_the_settings_is_opened(tmp_path: Path) -> None:
    open_store(Settings(home=tmp_path)).close()
    assert (tmp_path / "store" / "config.json").exists()
    open_store(Settings(home=tmp_path, store_url=f"file://{tmp_path}/other")).close()
    assert (tmp_path / "other" / "config.json").exists()
