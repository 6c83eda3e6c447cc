"""Local shards: few descriptors, disks that fail once or for good."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sample_files import picture, write_tar

from data_tools import errors
from data_tools.errors import DataError
from data_tools.shards import storage
from data_tools.shards.descriptors import raise_limit
from data_tools.shards.index import build_index
from data_tools.shards.shard_set import ShardSet

READ_ALL = """
import sys
from data_tools.shards.descriptors import raise_limit
from data_tools.shards.shard_set import ShardSet

raise_limit()
sources = [ShardSet.open(folder) for folder in sys.argv[1:]]
for again in range(2):
    for i in range(len(sources[0])):
        assert len({source.read(i) for source in sources}) == 1
"""


def test_three_sources_of_300_shards_share_256_descriptors(tmp_path: Path) -> None:
    image = picture(0, 8, 8)
    for number in range(300):
        write_tar(tmp_path / f"{number:03d}.tar", [("a.jpg", image), ("a.cls", b"0")])
    build_index(tmp_path)

    def lower() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, 256))

    folders = [str(tmp_path)] * 3
    done = subprocess.run(
        [sys.executable, "-c", READ_ALL, *folders], preexec_fn=lower, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_the_soft_limit_is_raised_and_never_lowered() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (before[0] // 2, before[1]))
        raise_limit()
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= before[0]
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def failing(function: Callable[..., Any], code: int, times: int) -> Callable[..., Any]:
    """The function, which raises OSError(code) the first `times` times."""
    left = [times]

    def call(*arguments: Any, **options: Any) -> Any:
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(code, os.strerror(code))
        return function(*arguments, **options)

    return call


@pytest.mark.parametrize("code", [errno.EIO, errno.ESTALE, errno.EMFILE])
@pytest.mark.parametrize("name", ["open", "pread", "stat"])
def test_a_failure_that_passes_is_waited_for(
    name: str, code: int, make_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards([2, 2])
    monkeypatch.setattr(errors, "_DISK_WAITS", (0.0, 0.0))
    wanted = [shards.read(i) for i in range(4)]
    with monkeypatch.context() as patched:
        patched.setattr(storage.os, name, failing(getattr(os, name), code, 2))
        opened = ShardSet.open(shards.folder)
        assert [opened.read(i) for i in range(4)] == wanted


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES, errno.ENOENT])
def test_a_failure_that_stays_names_the_shard(
    code: int, make_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards = make_shards([2])
    monkeypatch.setattr(errors, "_DISK_WAITS", (0.0, 0.0))
    monkeypatch.setattr(storage.os, "open", failing(os.open, code, 99))
    with pytest.raises(DataError, match=rf"part-000\.tar cannot be read: {os.strerror(code)}") as caught:
        shards.read(0)
    assert caught.value.exit_code == (1 if code == errno.EIO else 3)  # a job that ends with 1 is requeued


@pytest.mark.parametrize("file", ["shardindex.json", "shardindex.offsets.npy", "classes.json"])
def test_a_failing_disk_is_not_told_as_a_damaged_or_missing_index(
    file: str, make_shards, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_shards([2]).folder
    monkeypatch.setattr(errors, "_DISK_WAITS", (0.0, 0.0))
    real, failures = open, [0]

    def fail(path: Any, *arguments: Any, **options: Any) -> Any:
        if str(path).endswith(file) and failures[0] < limit:
            failures[0] += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr("io.open", fail)
    monkeypatch.setattr("builtins.open", fail)
    limit = 2
    assert len(ShardSet.open(folder)) == 2 and failures[0] == 2
    limit = 99
    with pytest.raises(DataError, match=rf"{file} cannot be read: Input/output error") as caught:
        ShardSet.open(folder)
    assert caught.value.exit_code == 1
