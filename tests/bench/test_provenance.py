from __future__ import annotations

import getpass
import json
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from offramp.bench import provenance as module
from offramp.bench.provenance import provenance, write_result


def test_says_where_a_number_comes_from() -> None:
    papers = provenance(seeds=[np.int64(3), 5])
    assert papers["seeds"] == [3, 5]
    assert papers["versions"]["numpy"] == np.__version__
    assert papers["machine"]["cores"] >= 1
    assert papers["machine"]["cpu"]
    assert papers["machine"]["python"].endswith(".".join(map(str, sys.version_info[:3])))
    assert papers["date"].endswith("+00:00")
    assert json.loads(json.dumps(papers)) == papers


def test_names_no_host_user_or_path() -> None:
    text = json.dumps(provenance())
    for private in (socket.gethostname(), str(Path.home()), str(Path.cwd()), sys.prefix):
        assert len(private) < 4 or private not in text
    assert f'"{getpass.getuser()}"' not in text


def git(folder: Path, *command: str) -> str:
    settings = ["-c", "user.name=n", "-c", "user.email=e@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *settings, *command], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_commit_and_dirty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "src" / "code.py"
    results = tmp_path / "benchmarks" / "results"
    results.mkdir(parents=True)
    code.parent.mkdir()
    code.write_text("x = 1\n")
    monkeypatch.setattr(module, "__file__", str(code))
    assert module._commit() == (None, None)  # no repository
    git(tmp_path, "init", "-q")
    assert module._commit() == (None, None)  # a repository that does not know the file
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert module._commit() == (commit, False)
    (results / "new.json").write_text("{}")
    assert module._commit() == (commit, False)  # a result is not code
    (tmp_path / "src" / "new.py").write_text("y = 2\n")
    assert module._commit() == (commit, True)
    (tmp_path / "src" / "new.py").unlink()
    code.write_text("x = 2\n")
    assert module._commit() == (commit, True)


def test_results_are_whole_or_not_there(tmp_path: Path) -> None:
    path = tmp_path / "results" / "r.json"
    write_result(path, {"score": np.float32(0.5), "all": np.arange(3), "n": np.int64(2)})
    assert json.loads(path.read_text()) == {"score": 0.5, "all": [0, 1, 2], "n": 2}
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        write_result(path, {"score": float("nan")})
    with pytest.raises(TypeError, match="object"):
        write_result(path, {"score": object()})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["r.json"]
