"""What is handed out: the wheel made from the source distribution is the one made from the tree, and both hold what they should.

Made by the build backend itself, as `python -m build` would ask it, in copies, without a network. The wheel in use: test_wheel.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOT_SHIPPED = {".ci/run", ".gitignore"}
pytestmark = pytest.mark.skipif(int(version("setuptools").split(".")[0]) < 77, reason="needs setuptools 77, as pyproject.toml says")


def tracked() -> set[str]:
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    if done.returncode:
        pytest.skip("not a git checkout")
    return {name for name in done.stdout.split("\0") if name and (ROOT / name).exists()}


def built(kind: str, tree: Path, out: Path) -> Path:
    """What the backend makes of a tree."""
    out.mkdir(exist_ok=True)
    code = f"import setuptools.build_meta as backend; print(backend.build_{kind}({str(out)!r}))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tree, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return out / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution of what git knows."""
    place = tmp_path_factory.mktemp("source")
    for name in tracked():
        (place / "tree" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, place / "tree" / name)
    return built("sdist", place / "tree", place / "out")


@pytest.fixture(scope="module")
def wheels(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, bytes], dict[str, bytes]]:
    """The files of both wheels: from the tree, from the source distribution."""
    place = tmp_path_factory.mktemp("wheels")
    with tarfile.open(source) as packed:
        packed.extractall(place / "unpacked", filter="data")
    (unpacked,) = (place / "unpacked").iterdir()
    made = (built("wheel", tree, place / name) for name, tree in (("a", source.parents[1] / "tree"), ("b", unpacked)))
    found = []
    for path in made:
        with zipfile.ZipFile(path) as wheel:
            found.append({name: wheel.read(name) for name in wheel.namelist()})
    return found[0], found[1]


def test_the_source_distribution_holds_the_repository(source: Path) -> None:
    with tarfile.open(source) as packed:
        names = {member.name.partition("/")[2] for member in packed.getmembers() if member.isfile()}
    assert tracked() - names == NOT_SHIPPED
    made = {name for name in names - tracked() if not name.startswith("fitprune.egg-info/")}
    assert made <= {"PKG-INFO", "setup.cfg"}


def test_both_wheels_are_the_same(wheels: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    first, second = wheels
    assert first.keys() == second.keys()
    assert not [name for name in first if first[name] != second[name]]


def test_the_wheel_holds_the_package_and_nothing_beside_it(wheels: tuple[dict[str, bytes], dict[str, bytes]]) -> None:
    files = {name for name in wheels[0] if ".dist-info/" not in name}
    assert files == {name for name in tracked() if name.startswith("fitprune/")}
    about = {name.rpartition("/")[2] for name in wheels[0] if ".dist-info/" in name}
    assert {"LICENSE", "NOTICE", "METADATA", "entry_points.txt"} <= about
