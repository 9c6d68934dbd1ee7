from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

Cli = Callable[..., Any]


def entropy(logits: list[float]) -> float:
    """Of the softmax, as a share of the most it can be."""
    exponents = [math.exp(value) for value in logits]
    shares = [value / sum(exponents) for value in exponents]
    return -sum(p * math.log(p) for p in shares) / math.log(len(shares))


@pytest.mark.parametrize("place", range(6))
def test_numbers_are_those_of_the_formulas(
    cli: Cli, trained: Path, dev_rows: list[dict[str, Any]], threshold: float, place: int
) -> None:
    import torch

    from offramp.model.modeling import load_early_exit
    from offramp.pipeline import load

    text = dev_rows[place]["text"]
    result = cli("inspect", trained, text, "--threshold", threshold, "--json").json
    encoded = load(trained).encode([text])[0]
    with torch.no_grad():
        logits = load_early_exit(trained)(torch.tensor(encoded.tokens[None].astype("int64"))).exit_logits[0].tolist()
    names = list(result["layers"][0]["distances"])
    assert (result["tokens"], len(result["layers"])) == (len(encoded), 3)
    for entry, values in zip(result["layers"], logits, strict=True):
        best = values.index(max(values))
        doubt = entropy(values)
        assert entry["label"] == names[best]
        assert entry["score"] == pytest.approx(1 - entry["doubt"], abs=1e-5)
        assert "confidence" not in entry  # it would be taken for the probability
        assert entry["entropy"] == pytest.approx(doubt, abs=1e-5)
        if entry["layer"] == 3:  # the model's own head, which measures no distances
            assert entry["dr"] is None
            assert entry["edr"] is None
            assert "distances" not in entry
            continue
        own = entry["distances"][names[best]]
        other = min(distance for name, distance in entry["distances"].items() if name != names[best])
        ratio = (1 + (own - other) / max(own, other)) / 2
        assert entry["dr"] == pytest.approx(ratio, abs=1e-5)
        assert entry["edr"] == pytest.approx(2 / (1 / ratio + 1 / doubt), abs=1e-5)
    below = [entry["layer"] for entry in result["layers"][:2] if entry["edr"] < threshold]
    assert result["exit_layer"] == (below or [3])[0]


def test_it_left_where_predict_says(cli: Cli, trained: Path, dev_rows: list[dict[str, Any]], threshold: float) -> None:
    texts = [row["text"] for row in dev_rows[:12]]
    lines = cli("predict", trained, "--threshold", threshold, *texts).lines
    assert len({line["exit_layer"] for line in lines}) > 1
    for text, line in zip(texts, lines, strict=True):
        result = cli("inspect", trained, text, "--threshold", threshold, "--json").json
        left = [entry for entry in result["layers"] if entry["left"]]
        assert [entry["layer"] for entry in left] == [line["exit_layer"]]
        assert (left[0]["label"], result["label"]) == (line["label"], line["label"])
        assert result["score"] == pytest.approx(line["score"], abs=1e-5)


def test_the_table(cli: Cli, trained: Path, threshold: float) -> None:
    words = ("inspect", trained, "a lovely gem of the town", "--threshold", threshold)
    result, lines = cli(*words, "--json").json, cli(*words).out.splitlines()
    assert lines[0].split() == ["layer", "says", "sure", "dr", "edr", "entropy", "d(bad)", "d(good)", "d(odd)"]
    for entry, line in zip(result["layers"], lines[1:4], strict=True):
        cells = line.split()
        assert cells[:3] == [str(entry["layer"]), entry["label"], f"{entry['score']:.3f}"]
        assert ("<- left" in line) == entry["left"]
        if entry["dr"] is not None:
            shown = [entry["dr"], entry["edr"], entry["entropy"], *entry["distances"].values()]
            assert [float(cell) for cell in cells[3:9]] == pytest.approx(shown, abs=5.1e-3)
    assert lines[-1] == f"Leaves at the first exit where edr < {threshold:.4g}. 8 tokens."
    assert max(map(len, lines)) <= 80


def test_what_else_may_be_asked(cli: Cli, trained: Path) -> None:
    full = cli("inspect", trained, "a gem", "--full-depth")
    assert "Full depth, no early exit. 4 tokens." in full.out
    assert cli("inspect", trained, "a gem", "--full-depth", "--json").json["exit_layer"] == 3
    capped = cli("inspect", trained, "a gem", "--threshold", 0, "--max-layers", 2)
    assert "edr < 0, or after 2 layers." in capped.out
    done = cli("inspect", trained, "gem " * 100_000)
    assert "48 tokens, cut from more." in done.out
    assert done.err.count("longer than the 48 tokens") == 1
    assert "contradict each other" in cli("inspect", trained, "a gem", "--full-depth", "--speedup", 2).error


def test_pairs_and_numbers(cli: Cli, pair_run: Path, number_run: Path) -> None:
    assert cli("inspect", pair_run, "the gem", "of town", "--json").json["text"] == ["the gem", "of town"]
    result = cli("inspect", number_run, "a gem", "--json").json
    assert all(entry["score"] is None and isinstance(entry["label"], float) for entry in result["layers"])
    lines = cli("inspect", number_run, "a gem").out.splitlines()
    assert float(lines[1].split()[1]) == pytest.approx(result["layers"][0]["label"], abs=1e-3)
    assert lines[-1].startswith("Leaves by patience_delta (delta ")


def test_how_far_a_number_moved(cli: Cli, number_run: Path, trained: Path) -> None:
    """The rule of patience, by hand: with patience 1 a text leaves where it moved less than delta."""
    words = ("inspect", number_run, "a lovely gem of the town")
    layers = cli(*words, "--json").json["layers"]
    numbers, moved = [entry["label"] for entry in layers], [entry["delta"] for entry in layers]
    assert moved == [None, *(pytest.approx(abs(b - a), abs=1e-6) for a, b in pairwise(numbers))]
    assert moved[1] != moved[2]
    for place in (1, 2):
        knobs = ("--knob", f"delta={moved[place] * 1.001}", "--knob", "patience=1")
        result = cli(*words, *knobs, "--json").json
        assert result["exit_layer"] == layers[1 if moved[1] < moved[place] * 1.001 else 2]["layer"]
    lines = cli(*words).out.splitlines()
    assert lines[0].split() == ["layer", "says", "sure", "|delta|"]
    assert len(lines[1].replace("<- left", "").split()) == 2
    for line, delta in zip(lines[2:4], moved[1:], strict=True):
        assert line.split()[2] == f"{delta:.4g}"
    assert all("delta" not in entry for entry in cli("inspect", trained, "a gem", "--json").json["layers"])


def test_as_many_texts_as_it_was_trained_on(cli: Cli, trained: Path, pair_run: Path, tmp_path: Path) -> None:
    two = cli("inspect", trained, "a", "gem").error
    assert two == "this run was trained on single texts (text): give one text, in quotes"
    assert cli("inspect", pair_run, "a gem").error == "this run was trained on pairs (first, second): give two texts"
    silent = Path(shutil.copytree(trained, tmp_path / "run"))  # a run that does not say: as it was asked for
    config = json.loads((silent / "config.json").read_text())
    del config["offramp"]["text_columns"]
    (silent / "config.json").write_text(json.dumps(config))
    assert cli("inspect", silent, "a", "gem", "--json").json["text"] == ["a", "gem"]
    assert cli("inspect", silent, "a gem", "--json").json["text"] == "a gem"


def test_several_labels(cli: Cli, joint_run: Callable[..., Path]) -> None:
    run = joint_run("multi_label_classification")
    for text in ("a lovely gem, dull and flat", "the film"):
        result = cli("inspect", run, text, "--threshold", 0.5, "--json").json
        lines = cli("inspect", run, text, "--threshold", 0.5).out.splitlines()
        assert lines[0].split() == ["layer", "says", "sure", "entropy"]
        for entry, line in zip(result["layers"], lines[1:4], strict=True):
            says = ", ".join(entry["label"]) or "(none)"
            assert line.split(None, 1)[1].startswith(f"{says}  ")
        [line] = cli("predict", run, text, "--threshold", 0.5).lines
        assert (line["label"], line["exit_layer"]) == (result["label"], result["exit_layer"])


def test_many_classes_are_two_distances(capsys: pytest.CaptureFixture[str]) -> None:
    from offramp.cli import inspect

    entry = {"layer": 1, "label": "c3", "score": 0.5, "entropy": 0.9, "left": False}
    distances = {f"c{k}": 10.0 - k for k in range(9)}
    layers = [{**entry, "distances": distances}, {**entry, "layer": 2, "left": True}]
    result = {"layers": layers, "criterion": "entropy", "knobs": {"threshold": 0.1}, "label": "c3"}
    inspect._print({**result, "tokens": 3, "truncated": False})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split()[-2:] == ["d(own)", "d(next)"]
    assert lines[1].split()[-2:] == ["7.00", "2.00"]


def test_a_rule_that_is_not_among_the_usual_ones_is_shown_where_it_decides(capsys: pytest.CaptureFixture[str]) -> None:
    from offramp.cli import inspect

    entry = {"layer": 1, "label": "c3", "score": 0.5, "doubt": 0.5, "entropy": 0.9, "other": 0.25, "left": True}
    for criterion, expected, rule in (
        ("other", ["entropy", "other"], "other < 0.6."),
        ("confidence", ["doubt", "entropy"], "doubt < 0.6 (criterion confidence)."),
    ):
        for label, told in (("c3", ""), ("c4", " The answer is its own: c4.")):
            result = {"layers": [entry], "criterion": criterion, "knobs": {"threshold": 0.6}, "label": label}
            inspect._print({**result, "tokens": 3, "truncated": False})
            lines = capsys.readouterr().out.splitlines()
            assert lines[0].split() == ["layer", "says", "sure", *expected]
            assert lines[-1] == f"Leaves at the first exit where {rule}{told} 3 tokens."


def test_a_label_is_printed_as_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    from rich.table import Table

    from offramp.cli.common import show

    monkeypatch.delenv("COLUMNS", raising=False)  # xdist sets it
    table = Table("says", box=None)
    for label in ("[b]", "[/red]", ":smile:", "x" * 150):
        table.add_row(label)
    show(table)
    assert [line.strip() for line in capsys.readouterr().out.splitlines()[1:]] == [
        "[b]",
        "[/red]",
        ":smile:",
        "x" * 150,
    ]


def test_criteria_that_were_never_learned_are_not_shown(cli: Cli, trained: Path) -> None:
    """Before they are, `learned_stopping` and `per_exit` give another criterion's numbers."""
    layers = json.loads(cli("inspect", trained, "a gem", "--json").out)["layers"]
    assert not {"learned_stopping", "per_exit"} & set(layers[0])
    assert {"entropy", "doubt"} <= set(layers[0])
