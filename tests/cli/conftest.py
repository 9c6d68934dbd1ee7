"""The command line in this process: ``cli("predict", run, "text")`` gives status, output and errors."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

QUICK = ["--max_steps", "2", "--bf16", "false", "--pooling", "mean", "--learning_rate", "5e-3"]


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one JSON object that was printed."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]

    @property
    def error(self) -> str:
        """The one sentence on standard error, where a command fails as it should; notes of ours may come before."""
        assert (self.status, self.out) == (2, ""), self
        *notes, last = self.err.splitlines()
        assert last.startswith("offramp: error: "), self.err
        assert all(re.match(r"offramp: (?!error).*(held out as dev|this is regression)", note) for note in notes), notes
        return last.removeprefix("offramp: error: ")


@pytest.fixture
def cli(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    from offramp.cli import main

    monkeypatch.delenv("COLUMNS", raising=False)  # xdist sets it

    def call(*words: object, stdin: str | bytes = "") -> Done:
        data = stdin.encode() if isinstance(stdin, str) else stdin
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), encoding="utf-8"))
        capfd.readouterr()
        with pytest.raises(SystemExit) as left:
            main([str(word) for word in words])
        return Done(int(left.value.code or 0), *capfd.readouterr())

    return call


@pytest.fixture(scope="session")
def dev_rows(toy_data: Callable[..., str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(toy_data()) / "dev.jsonl").read_text().splitlines()]


@pytest.fixture(scope="session")
def threshold(trained: Path) -> float:
    """A threshold at which the dev texts leave at every one of the trained run's exits; between two scores."""
    from offramp.criteria import make
    from offramp.criteria.base import Scored
    from offramp.traces.store import load_trace

    trace, criterion = load_trace(trained / "traces" / "dev"), make("edr")
    assert isinstance(criterion, Scored)
    first, second = (np.asarray(criterion.score(trace.stages[e], trace.output(e)), dtype=np.float64) for e in range(2))
    values = np.sort(np.concatenate([first, second]))
    for low, high in pairwise(values):
        middle = float(low + high) / 2
        leaving = [(first < middle).sum(), ((first >= middle) & (second < middle)).sum(), (second >= middle).sum()]
        if high - low > 1e-4 and min(leaving) >= 3:
            return middle
    raise AssertionError("the toy run has no threshold at which all exits are used")


@pytest.fixture(scope="session")
def pair_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV file of pairs under names that nobody would guess, and a decoy that everybody would."""
    path = tmp_path_factory.mktemp("pairs") / "pairs.csv"
    rows = [f"decoy {i},the gem,of the town,same" if i % 2 else f"decoy {i},a dull,story,other" for i in range(20)]
    path.write_text("\n".join(["text,first,second,verdict", *rows]) + "\n")
    return path


@pytest.fixture(scope="session")
def pair_run(tiny_encoder: str, pair_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run trained on pairs, through the command line. Shared: do not change it."""
    from offramp.cli import main

    out = tmp_path_factory.mktemp("pair") / "run"
    words = ["train", "--model", tiny_encoder, "--data", str(pair_data), "--out", str(out), *QUICK]
    with pytest.raises(SystemExit) as left:
        main([*words, "--text_columns", "first,second", "--label-column", "verdict"])
    assert not left.value.code
    return out


@pytest.fixture(scope="session")
def number_run(joint_run: Callable[..., Path]) -> Path:
    """A regression run, which leaves by patience. Shared: do not change it."""
    return joint_run("regression")
