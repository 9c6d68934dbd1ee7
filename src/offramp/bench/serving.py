"""``offramp bench``: prepare every row, let them race, and tell what came of it as one result."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from offramp.bench.deployments.base import Job, Way
from offramp.bench.rows import Bench, depth_of, our_rows, peer_rows, reference_of, row_names
from offramp.bench.speed import WARM_UP, Measured, race, ratio, summary
from offramp.bench.worker import Failure, Load
from offramp.errors import DataError, KnobError, UnsupportedError
from offramp.inputs.tokens import Encoded, Tokenizer
from offramp.run import Run, weights_hash
from offramp.traces.curves import bootstrap_interval

__all__ = ["run_bench"]


def run_bench(bench: Bench, *, say: Callable[[str], None] = lambda line: None) -> dict[str, Any]:
    """Prepare every row, let them race, and tell what came of it.

    Raises:
        UnsupportedError: the run is no single-label classifier.
        DataError: too few texts to halve.
        KnobError: no row begins as asked.
    """
    run = Run.open(bench.run)
    if run.problem_type != "single_label_classification":
        raise UnsupportedError(
            f"bench compares accuracies of single-label classifiers; this run does {run.problem_type}"
        )
    if len(bench.texts) < 100:
        raise DataError(f"{len(bench.texts)} texts are too few to choose on one half and score on the other: give 100")
    bench.work.mkdir(parents=True, exist_ok=True)
    _check_rows(bench)
    rule, load = bench.rule, bench.load
    right, whose = reference_of(bench, load)
    ready = peer_rows(bench, load, say) + our_rows(bench, load, right, say)
    going = [job for job, made in ready if not isinstance(made, Failure)]
    measured = {row.job.name: row for row in race(going, load, rounds=bench.rounds, say=say)}
    rows = [_told(job, made, measured.get(job.name), bench) for job, made in ready]
    reference = right[: len(bench.texts)]
    _compared(rows, reference, bench)
    return {
        "data": {
            "n": len(bench.texts), "chosen_on_only": len(bench.more_texts), "single": len(load.single),
            "layers": depth_of(run), "operations_a_text": operations_a_text(run, _tokens(bench, load)),
        },
        "settings": {
            "rounds": bench.rounds, "threads": bench.threads, "max_rows": bench.max_rows, "splits": bench.splits,
            "seed": bench.seed, "criterion": rule.name, "max_length": load.max_length, "max_lost": list(bench.max_lost),
            "warm_up": WARM_UP,
        },
        "models": {"run": _model(bench.run), "plain": _model(bench.plain)},
        "reference": {"of": whose, "accuracy": float(reference.mean())},
        "fastest_peer": {scenario: _fastest_peer(rows, scenario) for scenario in bench.scenarios},
        "rows": rows,
    }  # fmt: skip


def _model(folder: Path) -> dict[str, str]:
    """A model's folder, by its name alone, and the hash of its weights (safetensors)."""
    return {"name": folder.resolve().name, "weights": weights_hash(folder)}


def _check_rows(bench: Bench) -> None:
    """Raise KnobError where something was asked for that is no row."""
    names = row_names(bench.run, bench.max_lost, bench.scenarios)
    for prefix in bench.rows:
        if not any(name.startswith(prefix) for name in names):
            raise KnobError(f"no row's name begins with {prefix!r}: `--rows list` prints them")


def _told(job: Job, made: Mapping[str, Any] | Failure, row: Measured | None, bench: Bench) -> dict[str, Any]:
    """A row as it stands in the result."""
    settings = {name: value for name, value in job.settings.items() if name != "texts"}
    told: dict[str, Any] = {"name": job.name, "label": job.label, "group": job.group, "family": job.family}
    told["settings"] = settings
    failure = made if isinstance(made, Failure) else None if row is None else row.failure
    if failure is not None or row is None:
        return told | {"failure": "was not run" if failure is None else failure.sentence}
    assert not isinstance(made, Failure)
    told |= {"startup_s": row.startup, "prepared": dict(made), "facts": dict(row.facts), "threads": bench.threads}
    for scenario, entry in summary(row, len(bench.texts)).items():
        right = row.answers[scenario].argmax(axis=-1) == bench.labels
        way = row.ways[scenario]
        used = {"threads": way.threads, "lanes": way.lanes}
        told[scenario] = entry | {"right": right, "way": used, "label": _label(job.label, way, bench.threads)}
    return told


def _tokens(bench: Bench, load: Load) -> Sequence[Encoded]:
    return Tokenizer.from_folder(load.tokenizer, max_length=load.max_length).encode(bench.texts)


def operations_a_text(run: Run, texts: Sequence[Encoded]) -> float:
    """Multiplications and additions of the encoder's layers for a text, on average.

    A layer of width h, with an inner width of i, does ``2 (4 h^2 + 2 h i)`` for every token and ``4 h`` for every pair
    of tokens.
    """
    config = run.config
    width = int(config["hidden_size"] if "hidden_size" in config else config["dim"])  # DistilBERT's word
    inner = int(config["intermediate_size"] if "intermediate_size" in config else config["hidden_dim"])
    lengths = np.array([len(text) for text in texts], dtype=np.float64)
    layer = 2 * (4 * width**2 + 2 * width * inner) * lengths + 4 * width * lengths**2
    return float(depth_of(run) * layer.mean())


def _label(label: str, way: Way, threads: int) -> str:
    """A row's label, and how it uses the cores where that is not every operator on all of them."""
    if way.lanes > 1:
        return f"{label} ({way.lanes} lanes)"
    return label if way.threads == threads else f"{label} (1 thread)"


def _compared(rows: Sequence[dict[str, Any]], reference: npt.NDArray[np.bool_], bench: Bench) -> None:
    """Add what only stands beside other rows: ratios, points lost, efficiency, the static exit of equal speed."""
    for scenario in bench.scenarios:
        fastest = _fastest_peer(rows, scenario)
        timed = {row["name"]: row for row in rows if scenario in row}
        for row in timed.values():
            entry = row[scenario]
            if fastest is not None:
                entry["ratio"] = _ratio(entry, timed[fastest][scenario])
            if row["group"] in ("exits", "full"):
                entry |= _against_ours(row, timed, scenario)
            if row["group"] == "exits":
                entry["shallow"] = _against_shallow(row, timed.values(), scenario, bench.seed)
        for row in timed.values():
            entry = row[scenario]
            right = entry.pop("right")
            low, high = bootstrap_interval(100 * (reference.astype(float) - right), seed=bench.seed)
            entry["accuracy"] = float(right.mean())
            entry["lost"] = {"points": float(100 * (reference.mean() - right.mean())), "low": low, "high": high}


_BARE, _WITH = "without tokenisation", "with tokenisation"


def _ratio(entry: Mapping[str, Any], other: Mapping[str, Any]) -> dict[str, Any]:
    return {
        how: ratio(entry[how]["texts_per_second"], other[how]["texts_per_second"])
        for how in (_BARE, _WITH) if how in entry and how in other
    }  # fmt: skip


def _fastest_peer(rows: Sequence[Mapping[str, Any]], scenario: str) -> str | None:
    """Name of the full-depth peer with most texts a second, without tokenisation."""
    timed = [row for row in rows if row["group"] == "peer" and _BARE in row.get(scenario, {})]
    speed = {str(row["name"]): row[scenario][_BARE]["texts_per_second"]["median"] for row in timed}
    return max(speed, key=lambda name: speed[name]) if speed else None


def _against_ours(row: Mapping[str, Any], timed: Mapping[str, Any], scenario: str) -> dict[str, Any]:
    """With exits: wall clock over layers. At full depth: what the engine costs beside the runtime alone.

    Nothing where the other row uses the cores otherwise: that would be told as the engine's doing.
    """
    other = timed.get(f"{row['family']}-{'whole' if row['group'] == 'full' else 'full'}")
    if other is None or other[scenario]["way"] != row[scenario]["way"]:
        return {}
    faster = ratio(row[scenario][_BARE]["texts_per_second"], other[scenario][_BARE]["texts_per_second"])
    if row["group"] == "full":
        return {"engine_against_whole_graph": faster}
    fraction = row["facts"]["token_layer_fraction"]
    return {"wall_clock_speedup": faster, "wall_over_layers": 1 / faster["median"] / fraction}


def _against_shallow(
    row: Mapping[str, Any], timed: Iterable[Mapping[str, Any]], scenario: str, seed: int
) -> dict[str, Any] | None:
    """The static exit that is nearest in texts a second, on whatever runtime, and points gained over it."""

    def speed(one: Mapping[str, Any]) -> float:
        return float(one[scenario][_BARE]["texts_per_second"]["median"])

    statics = [other for other in timed if other["group"] == "shallow"]
    if not statics:
        return None
    static = min(statics, key=lambda other: abs(math.log(speed(other) / speed(row))))
    gained = 100 * (row[scenario]["right"].astype(float) - static[scenario]["right"])
    low, high = bootstrap_interval(gained, seed=seed)
    told = {"name": static["name"], "label": static["label"], "speed": speed(static) / speed(row)}
    return told | {"points": float(gained.mean()), "low": low, "high": high}
