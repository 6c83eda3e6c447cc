"""Shards in a bucket, through the real client and a server that speaks S3, where both are installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from data_tools.errors import DataError
from data_tools.shards.index import build_index
from data_tools.shards.remote import expand
from data_tools.shards.shard_set import ShardSet

pytest.importorskip("s3fs", reason="s3fs is not installed: pip install 'vit-pretrain[s3]' moto[server]")
server = pytest.importorskip("moto.server", reason="moto[server] is not installed")


def test_shards_in_a_bucket_are_indexed_and_read_by_range(
    make_shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    local = make_shards([7, 5])
    running = server.ThreadedMotoServer(port=0, verbose=False)
    running.start()
    try:
        host, port = running.get_host_and_port()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.setenv(name, "test")
        monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        client = boto3.client("s3")
        client.create_bucket(Bucket="images")
        for path in local.folder.glob("*.tar"):
            client.upload_file(str(path), "images", f"train/{path.name}")
        summary = build_index(tmp_path / "index", expand(["s3://images/train/"]))
        assert (summary.samples, summary.shards) == (12, 2)
        remote = ShardSet.open(tmp_path / "index")
        assert [remote.read(i) for i in range(12)] == [local.read(i) for i in range(12)]
        with pytest.raises(DataError, match=r"s3://images/none\.tar cannot be read"):
            build_index(tmp_path / "other", expand(["s3://images/none.tar"]))
    finally:
        running.stop()
