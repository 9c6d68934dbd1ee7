from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.bench.significance import standard_error, two_sided
from offramp.bench.suite import Cell, Suite
from offramp.bench.suite_page import as_markdown, replace_block
from offramp.bench.suite_plots import figures, plot_tier
from offramp.bench.suite_results import Results
from offramp.bench.suite_tables import compute
from offramp.bench.suite_unions import over_tasks
from offramp.calibration.compare import compare, usual_rules
from offramp.criteria import make
from offramp.errors import DataError, OfframpError, RunError
from offramp.traces.trace import Trace

UNITS, LAYERS = 120, 4


def entry(name: str, **more: Any) -> dict[str, Any]:
    return {"name": name, "recipe": name, **more}


SUITE = Suite.from_json(
    {
        "name": "mine",
        "encoder": "tiny",
        "targets": [1.5, 2.0, 3.0],
        "splits": 4,
        "resamples": 50,
        "unions": [["toy", "twin"], ["toy", "gone"]],
        "tasks": {
            "toy": {"name": "toy", "folder": "toy", "metric": "f1"},
            "twin": {"name": "twin", "folder": "twin"},
            "numbers": {"name": "numbers", "folder": "numbers", "problem_type": "regression"},
            "gone": {"name": "gone", "folder": "gone"},
        },
        "entries": {
            "joint": entry("joint", settings={"head.null_space": True}),
            "energy": entry("energy", recipe="joint", settings={"head.null_space": True}, criterion="energy"),
            "de3bert": entry("de3bert"),
            "plain": entry("plain"),
            "plain-1": entry("plain-1", recipe="plain", num_layers=1),
            "plain-2": entry("plain-2", recipe="plain", num_layers=2),
        },
        "tiers": [
            {
                "name": "A",
                "recipes": ["joint", "energy", "de3bert", "plain"],
                "seeds": {"toy": 2, "numbers": 1, "gone": 1},
            },
            {"name": "again", "recipes": ["joint", "energy", "de3bert"], "seeds": {"twin": 1}},
            {"name": "layers", "recipes": ["plain-1", "plain-2"], "seeds": {"toy": 1}},
        ],
    }
)
ENDED = {"commit": "c" * 40, "dirty": False, "date": "2026-01-01", "machine": {}, "versions": {"torch": "2"},
         "encoder_hash": "e" * 64, "data_hash": "d" * 64}  # fmt: skip


def toy_trace(layers: list[int], seed: int, *, distances: bool = False, regression: bool = False) -> Trace:
    """Deeper exits know more."""
    rng = np.random.default_rng(seed)
    truth = np.random.default_rng(99).integers(2, size=UNITS)
    if regression:
        logits = [truth[:, None] + rng.normal(scale=1 / layer, size=(UNITS, 1)) for layer in layers]
    else:
        logits = [np.eye(2)[truth] * layer + rng.normal(size=(UNITS, 2)) for layer in layers]
    stacked = np.array(logits, dtype=np.float32)
    return Trace(
        logits=stacked,
        layers=np.array(layers),
        lengths=np.ones(UNITS, dtype=np.int64),
        problem_type="regression" if regression else "single_label_classification",
        id2label={0: "value"} if regression else {0: "no", 1: "yes"},
        labels=truth.astype(np.float32) if regression else truth,
        extras={"distances": np.exp(-stacked)} if distances else {},
    )


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Everything but the task that is gone, and de3bert with seed 1. Shared: do not change it."""
    results = Results(tmp_path_factory.mktemp("results"))
    every = list(range(1, LAYERS + 1))
    for cell in SUITE.cells():
        layers = {"plain": [LAYERS], "plain-1": [1], "plain-2": [2]}.get(cell.recipe, every)
        trace = toy_trace(layers, cell.seed, distances=cell.recipe == "de3bert", regression=cell.task == "numbers")
        left_out = cell.task == "gone" or cell == Cell("toy", "de3bert", 1) or not served(cell)
        if left_out or results.record(cell.task, SUITE.key(cell)) is not None:
            continue
        record = {"task": cell.task, "recipe": cell.recipe, "seed": cell.seed, "key": SUITE.key(cell), "seconds": 60.0,
                  "pieces": 1, "rows": {"train": 500, "dev": UNITS}, "full_depth": 0.9, **ENDED,
                  "metric": "pearson" if cell.task == "numbers" else "f1"}  # fmt: skip
        results.keep(trace, record)
    results.write(SUITE, lambda cell: status(cell, results))
    return results


def served(cell: Cell) -> bool:
    return cell.task != "numbers" or cell.recipe in ("joint", "plain")


def status(cell: Cell, results: Results) -> tuple[str | None, str | None]:
    if not served(cell):
        return None, "does not serve numbers"
    key = SUITE.key(cell)
    if results.record(cell.task, key) is not None:
        return key, None
    return key, "not available offline." if cell.task == "gone" else "not run yet"


@pytest.fixture(scope="module")
def numbers(kept: Results) -> dict[str, Any]:
    suite, cells = kept.read()
    assert suite == SUITE
    result = compute(suite, cells, kept)
    return json.loads(json.dumps(result))  # type: ignore[no-any-return]


def row(numbers: dict[str, Any], name: str, task: str = "toy") -> dict[str, Any]:
    table = next(one for one in numbers["tasks"] if one["task"] == task)
    found: dict[str, Any] = next(one for one in table["rows"] if one["name"] == name)
    return found


def test_chosen_rules_score_as_compare_does() -> None:
    trace = toy_trace([1, 2, 3, 4], 0, distances=True)
    usual = {name: rule for name, rule in usual_rules(trace).items() if name in ("entropy", "edr (lam 1)", "static")}
    whole = compare(trace, rules=usual, targets=(1.5, 2.0), splits=4, resamples=50, metric="f1")
    some = compare(
        trace, rules={"entropy": [make("entropy")], "depth": [make("depth")], "mine": [make("edr", lam=1.0)]},
        targets=(1.5, 2.0), splits=4, resamples=50, metric="f1",
    )  # fmt: skip
    mine = {one["name"]: one for one in some["rows"]}
    theirs = {one["name"]: one for one in whole["rows"]}
    for ours, other in (("entropy", "entropy"), ("depth", "static"), ("mine", "edr (lam 1)")):
        for one in (*mine[ours]["cells"], *theirs[other]["cells"]):
            del one["settings"]  # all of them here; only what differs from the defaults there
        for what in ("cells", "curve", "area"):
            assert mine[ours][what] == theirs[other][what]
    for what in ("full_depth", "exits", "oracle", "n", "metric", "num_layers"):
        assert some[what] == whole[what]


def test_every_row_is_there(numbers: dict[str, Any]) -> None:
    toy = numbers["tasks"][0]
    assert [(one["name"], one["kind"], one["seeds"]) for one in toy["rows"]] == [
        ("joint", "recipe", [0, 1]),
        ("energy", "recipe", [0, 1]),
        ("de3bert", "recipe", [0]),
        ("plain", "plain", [0, 1]),
        ("entropy on de3bert", "entropy", [0]),  # joint's own row is entropy on joint, and energy shares its model
        ("static exit of joint", "static", [0, 1]),
        ("oracle of joint", "oracle", [0, 1]),
        ("separately fine-tuned k layers", "layers", [0]),
    ]
    assert (toy["metric"], toy["n"], toy["train_rows"], toy["num_layers"]) == ("f1", UNITS, 500, LAYERS)
    assert toy["not_run"] == [{"recipe": "de3bert", "seeds": [1], "reason": "not run yet"}]


def test_means_and_spread_over_seeds(numbers: dict[str, Any], kept: Results) -> None:
    found = []
    rules = {name: [make(name)] for name in ("entropy", "energy")}
    for seed in (0, 1):
        trace = kept.trace("toy", SUITE.key(Cell("toy", "energy", seed)))
        table = compare(trace, rules=rules, targets=(2.0,), splits=4, resamples=50, metric="f1", keep_samples=True)
        found.append(next(one["cells"][0] for one in table["rows"] if one["name"] == "energy"))
    cell = row(numbers, "energy")["cells"][1]
    assert cell["score"]["mean"] == pytest.approx(np.mean([one["score"] for one in found]))
    assert cell["score"]["se"] == pytest.approx(abs(found[0]["score"] - found[1]["score"]) / 2)
    assert cell["gap"]["mean"] == pytest.approx(np.mean([one["against_baseline"]["mean"] for one in found]))
    # Seeds share their dev rows: the interval is that of the mean over seeds, row by row, and so no wider than theirs.
    both = np.mean([one["against_baseline"]["samples"] for one in found], axis=0)
    assert cell["gap"]["interval"] == pytest.approx(np.quantile(both, [0.025, 0.975]))
    widths = [np.ptp(one["against_baseline"]["interval"]) for one in found]
    assert np.ptp(cell["gap"]["interval"]) < np.mean(widths)
    assert row(numbers, "de3bert")["cells"][1]["score"]["se"] is None


def test_layers_trained_by_themselves(numbers: dict[str, Any], kept: Results) -> None:
    by_layers = row(numbers, "separately fine-tuned k layers")
    # 4 / 2 is fast enough for 1.5x and 2x (three layers were not trained), 4 / 1 for 3x.
    assert [cell["layer_speedup"] for cell in by_layers["cells"]] == [2, 2, 4]
    trace = kept.trace("toy", SUITE.key(Cell("toy", "plain-2", 0)))
    labels, said = trace.labels_known(), trace.logits[-1].argmax(-1)
    f1 = 2 * (said & labels).sum() / (said.sum() + labels.sum())
    assert by_layers["cells"][0]["score"]["mean"] == pytest.approx(f1)
    assert by_layers["full_depth"] == row(numbers, "plain")["full_depth"]
    one, two, four = (point["score"]["mean"] for point in by_layers["curve"])
    assert by_layers["area"]["mean"] == pytest.approx(((one + two) / 2 * 0.25 + (two + four) / 2 * 0.5) / 0.75)


def test_layers_not_trained_yet_are_not_stood_in_for_by_fewer(numbers: dict[str, Any], kept: Results) -> None:
    suite, cells = kept.read()
    some = [cell | {"status": "not run", "reason": None} if cell["recipe"] == "plain-2" else cell for cell in cells]
    again = compute(suite, some, kept)
    by_layers = row(again, "separately fine-tuned k layers")
    assert [cell and cell["layer_speedup"] for cell in by_layers["cells"]] == [None, None, 4]
    assert by_layers["area"] is None
    [line] = [line for line in as_markdown(again).splitlines() if line.startswith("| separately fine-tuned")]
    assert line.count("not run") == 2
    assert "not reached" not in line


def test_the_page_says_where_a_row_is_faster_than_asked(numbers: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(numbers))
    cells = row(changed, "energy")["cells"]
    for cell, speed in zip(cells, (1.52, 2.6, 3.0), strict=True):
        cell["layer_speedup"] = speed
    section = as_markdown(changed).partition("### toy")[2].partition("### twin")[0]
    [line] = [line for line in section.splitlines() if line.startswith("| energy | energy |")]
    assert line.count("at 2.6x") == 1
    assert "at 1.5x" not in line


def test_every_number_has_an_interval(numbers: dict[str, Any]) -> None:
    for task in numbers["tasks"]:
        for one in task["rows"]:
            values = [one["full_depth"], one["area"], *(cell and cell["score"] for cell in one["cells"])]
            for number in filter(None, [*values, *(point["score"] for point in one["curve"])]):
                assert number["interval"][0] <= number["mean"] + 1e-9
                assert number["interval"][1] >= number["mean"] - 1e-9


def test_means_over_tasks(numbers: dict[str, Any], kept: Results) -> None:
    [union] = numbers["unions"]  # not the one whose second task did not run
    assert union["tasks"] == ["toy", "twin"]
    names = [one["name"] for one in union["rows"]]
    assert "de3bert" in names
    assert "plain" not in names, "one of the tasks has no such row"
    # toy has another seed of some rows. The others would not be held against them on equal terms.
    assert union["seeds"] == [0]
    suite, cells = kept.read()
    first = json.loads(json.dumps(compute(suite, [cell for cell in cells if cell["seed"] == 0], kept)))
    energy = next(one for one in union["rows"] if one["name"] == "energy")
    two = [row(first, "energy", task) for task in ("toy", "twin")]
    for what in ("score", "gap"):
        [number, *each] = [one["cells"][1][what] for one in (energy, *two)]
        assert number["mean"] == pytest.approx(np.mean([one["mean"] for one in each]))
        # Tasks are independent: squares of widths add up.
        widths = np.array([np.ptp(one["interval"]) for one in each])
        assert np.ptp(number["interval"]) == pytest.approx(np.sqrt((widths**2).sum()) / 2)
    assert energy["cells"][1]["layer_speedup"] == pytest.approx(np.mean([o["cells"][1]["layer_speedup"] for o in two]))


def test_a_mean_over_tasks_needs_all_of_them(numbers: dict[str, Any]) -> None:
    """Where a task does not reach a target there is no mean of the others, nor of a gap that one lacks."""
    tables = [[json.loads(json.dumps(row(numbers, "energy", task)))] for task in ("toy", "twin")]
    tables[0][0]["cells"][0] = None
    tables[1][0]["cells"][1]["gap"] = None
    tables[1][0]["area"] = None
    [found] = over_tasks(tables)
    assert found["cells"][0] is None
    assert found["cells"][1]["gap"] is None
    assert found["cells"][1]["score"] is not None
    assert found["cells"][2]["gap"] is not None
    assert found["area"] is None


def test_seeds_of_other_rows_are_refused(kept: Results, tmp_path: Path) -> None:
    """Their samples would be averaged as if they were of the same rows."""
    suite, cells = kept.read()
    mine = [cell for cell in cells if cell["task"] == "toy" and cell["recipe"] == "joint"]
    other = Results(tmp_path)
    for cell in mine:
        trace = kept.trace("toy", cell["key"])
        record = kept.record("toy", cell["key"])
        assert record is not None
        other.keep(trace if cell["seed"] == 0 else trace.select(np.arange(UNITS)[::-1]), record)
    with pytest.raises(DataError, match="different dev rows"):
        compute(suite, mine, other)


def test_tasks_with_nothing_in_common_have_no_mean(kept: Results) -> None:
    """Cells come one by one: for a time a task may have other recipes than the next, or other seeds."""
    suite, cells = kept.read()
    toy, twin = ([cell for cell in cells if cell["task"] == task] for task in ("toy", "twin"))
    other_recipes = [c for c in toy if c["recipe"] == "de3bert"] + [c for c in twin if c["recipe"] == "joint"]
    other_seeds = [c for c in toy if (c["recipe"], c["seed"]) == ("joint", 1)] + other_recipes[-1:]
    for some in (other_recipes, other_seeds):
        assert compute(suite, some, kept)["unions"] == []


def test_gaps_over_tasks_are_corrected(numbers: dict[str, Any]) -> None:
    [union] = numbers["unions"]
    gaps = [cell["gap"] for one in union["rows"] for cell in one["cells"] if cell and cell["gap"]]
    tested = [gap for gap in gaps if "corrected" in gap]
    assert 3 < len(tested) < len(gaps), "entropy against itself is no test"
    least = max(tested, key=lambda gap: abs(gap["mean"]) / np.ptp(gap["interval"]))
    alone = two_sided(least["mean"], standard_error(least["interval"]))
    assert least["corrected"] == pytest.approx(min(1, alone * len(tested)))


def test_the_page_marks_what_stands_correction(numbers: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(numbers))
    found = next(one for one in changed["unions"][0]["rows"] if one["name"] == "energy")
    for cell, p in zip(found["cells"], (0.06, 0.04, 0.2), strict=True):
        cell["gap"] = {"mean": 0.012, "se": None, "interval": [0.001, 0.023], "corrected": p}
    line = next(one for one in as_markdown(changed).splitlines() if one.startswith("| energy |"))
    assert line.endswith("| +1.2 [+0.1, +2.3] | **+1.2 [+0.1, +2.3]** | +1.2 [+0.1, +2.3] |")


def test_the_page_says_what_means_over_tasks_are_of(numbers: dict[str, Any]) -> None:
    changed = json.loads(json.dumps(numbers))
    found = next(one for one in changed["unions"][0]["rows"] if one["name"] == "energy")
    found["cells"][0]["layer_speedup"] = 2.6
    section = as_markdown(changed).partition("### Mean over toy, twin")[2].partition("###")[0]
    line = next(one for one in section.splitlines() if one.startswith("| energy |"))
    assert line.count("at 2.6x") == 1
    assert section.lstrip().startswith("f1 x 100, seed 0 of every row")
    changed["tasks"][1]["metric"] = "matthews"
    assert "f1 (toy), matthews (twin) x 100" in as_markdown(changed)


def test_the_oracle_is_best(numbers: dict[str, Any]) -> None:
    best = row(numbers, "oracle of joint")["curve"][0]
    assert best["score"]["mean"] > max(cell["score"]["mean"] for cell in row(numbers, "joint")["cells"] if cell)


def test_regression_is_measured_against_static_exits(numbers: dict[str, Any]) -> None:
    table = next(task for task in numbers["tasks"] if task["task"] == "numbers")
    assert table["against"] == "depth"
    assert [one["name"] for one in table["rows"]] == ["joint", "plain", "static exit of joint"]
    assert "the best static exit on the same" in as_markdown(numbers)
    assert {one["recipe"] for one in table["not_run"]} == {"energy", "de3bert"}


def test_stored_cells_make_the_same_tables_and_plots(kept: Results, numbers: dict[str, Any]) -> None:
    suite, cells = kept.read()
    again = compute(suite, cells, kept)
    assert as_markdown(again, pictures="p") == as_markdown(numbers, pictures="p")
    assert again["tasks"] == numbers["tasks"]
    assert plot_tier(again, "A") == plot_tier(numbers, "A")


def test_the_page(numbers: dict[str, Any]) -> None:
    page = as_markdown(numbers, pictures="comparison")
    assert "![score against layer speed-up, a panel a task](comparison/tier-A.png)" in page
    assert "- gone: not available offline" in page
    assert "Not run: de3bert (seed 1): not run yet." in page
    assert "| entropy on de3bert |" in page
    lines = page.splitlines()
    for table in ("| | leaves by |", "| | 1.5x |"):
        start = next(n for n, line in enumerate(lines) if line.startswith(table))
        width = lines[start].count("|")
        rest = lines[start:]
        rest = rest[: rest.index("")]
        assert {line.count("|") for line in rest} == {width}
    gaps = page[page.index("Points won or lost") :].split("\n\n")[1]
    assert "energy" in gaps
    assert "\n| joint |" not in gaps  # entropy against itself


def test_a_cascade_is_as_fast_as_its_layers_say(tmp_path: Path) -> None:
    """Two layers, then four more from the beginning: who goes through both is slower than the encoder alone."""
    cell = Cell("toy", "cascade", 0)
    tier = {"name": "A", "recipes": ["cascade"], "seeds": {"toy": 1}}
    suite = Suite.from_json(
        SUITE.to_json() | {"tiers": [tier], "entries": {"cascade": entry("cascade", recipe="cascadebert")}}
    )
    results, key = Results(tmp_path), suite.key(cell)
    record = {"task": "toy", "recipe": "cascade", "seed": 0, "key": key, "seconds": 1.0, "pieces": 1, "metric": "f1"}
    results.keep(
        replace(toy_trace([2, 6], 0), full_layers=4),
        record | {"rows": {"train": 5, "dev": UNITS}, "full_depth": 0.9, **ENDED},
    )
    cells = results.write(suite, lambda one: (key, None) if one == cell else (None, "no"))
    numbers = compute(suite, cells, results)
    assert numbers["tasks"][0]["num_layers"] == 4
    found = row(numbers, "cascade")
    # At most 4 / 2 is reached, where everyone leaves after the first model.
    assert 1.8 < found["cells"][1]["layer_speedup"] <= 2
    assert found["cells"][2] is None
    assert found["cells"][0]["layer_speedup"] == pytest.approx(1.5, rel=0.1)
    assert found["curve"][0]["target"] == 1


def test_a_picture_a_tier_that_has_curves(numbers: dict[str, Any]) -> None:
    assert figures(numbers) == {"tier-A.png": "A"}, "layers has no curves, and all of again stands in A"
    # "never" and "not yet" did not run: what is drawn of the third stands in the second.
    more = numbers | {"tiers": {"one": ["joint"], "two": ["energy", "never"], "three": ["energy", "not yet"]}}
    assert list(figures(more).values()) == ["one", "two"]
    assert plot_tier(numbers, "A").startswith(b"\x89PNG")


def test_nothing_run_yet(tmp_path: Path) -> None:
    results = Results(tmp_path)
    with pytest.raises(RunError, match="run the suite first"):
        results.read()
    cells = results.write(SUITE, lambda cell: (None, "no data"))
    numbers = compute(SUITE, cells, results)
    assert figures(numbers) == {}
    assert "- toy: no data" in as_markdown(numbers, pictures="p")


def test_a_block_is_replaced() -> None:
    page = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb"
    assert replace_block(page, "x", r"\1 new") == "a\n<!-- x:begin -->\n\\1 new\n<!-- x:end -->\nb"
    with pytest.raises(OfframpError, match="no block y"):
        replace_block(page, "y", "")
