"""What all tests share: reference data, and small packed data sets."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from jobs import Data, run
from pictures import write_pictures

pytest_plugins = ["small_models"]

# Where pip has compiled nothing (see launch/venv.sh), every start would compile torch anew.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="only quick tests that start no other process")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that take minutes go first, so that none is left for one worker at the end."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


@pytest.fixture(scope="session", autouse=True)
def quick(request: pytest.FixtureRequest) -> None:
    """With --quick, a test is skipped as soon as it starts a process."""
    if request.config.getoption("--quick"):
        sys.addaudithook(_skip_at_a_process)


@pytest.fixture(autouse=True)
def not_slow(request: pytest.FixtureRequest) -> None:
    """With --quick, a test marked as slow is skipped."""
    if request.config.getoption("--quick") and request.node.get_closest_marker("slow"):
        pytest.skip("--quick: it is marked as slow")


def _skip_at_a_process(event: str, arguments: tuple[object, ...]) -> None:
    if event in ("subprocess.Popen", "os.fork", "os.posix_spawn"):
        pytest.skip("--quick: it starts another process")


LONG = (  # a file that computes beside one that mostly waits
    *("test_quickstart", "test_slurm", "test_parity", "test_short_drills", "test_resume", "test_survive"),
    *("test_checkpoint_ring", "test_order_and_engines", "test_readme", "test_memory", "test_types"),
)
SHARED = Path(__file__).resolve().parents[1].parent / "shared"


@pytest.fixture(scope="session")
def shared() -> Callable[[str], Path]:
    """shared(name): a file or folder of the reference data; skips the test where it is not there."""

    def path(name: str) -> Path:
        found = SHARED / name
        if not found.exists():
            pytest.skip(f"the shared reference data has no {name} here")
        return found

    return path


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Data:
    """97 training and 21 held-out pictures of three classes, 1 to 4 tiles of 16 pixels, packed."""
    folder = tmp_path_factory.mktemp("data")
    write_pictures(folder / "images/train", 97, seed=1)
    write_pictures(folder / "images/val", 21, seed=2)
    for split in ("train", "val"):
        done = run("data_tools", "pack", folder / "images" / split, folder / split, "--shard-size", "20KB")
        assert done.returncode == 0, done.stderr
    return Data(folder / "train", folder / "val", folder / "images/val")


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """An empty folder; the test may not read and write everything, even if it was started by root."""
    root = os.geteuid() == 0
    with TemporaryDirectory() as folder:
        os.chmod(folder, 0o777)
        if root:
            os.seteuid(65534)
        try:
            yield Path(folder)
        finally:
            if root:
                os.seteuid(0)
