from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import offramp
from offramp import Prediction
from offramp.calibration.monitor import Monitor
from offramp.calibration.points import OperatingPoint
from offramp.choosing import Chooser
from offramp.criteria import make
from offramp.engine.record import record
from offramp.engine.reference import reference
from offramp.errors import DataError, KnobError, RunError
from offramp.pipeline import Classifier
from offramp.runtimes.base import InCompany
from offramp.runtimes.fake import FakeRuntime
from offramp.traces.replay import scores as scores_of

LONG = "gem " * 100
KINDS = ("single_label_classification", "multi_label_classification", "regression")


@pytest.fixture(scope="module")
def classifiers(trained: Path, joint_run: Callable[[str], Path]) -> Callable[[str], Classifier]:
    """Problem type -> a tiny trained model: DE3-BERT, or joint where DE3-BERT does not serve."""

    @cache
    def get(kind: str) -> Classifier:
        return offramp.load(trained if kind == KINDS[0] else joint_run(kind))

    return get


@pytest.fixture(scope="module")
def classifier(classifiers: Callable[[str], Classifier]) -> Classifier:
    return classifiers(KINDS[0])


@pytest.fixture(scope="module")
def texts(toy_data: Callable[..., str]) -> Callable[[str], list[str]]:
    def read(kind: str) -> list[str]:
        lines = (Path(toy_data(kind)) / "dev.jsonl").read_text().splitlines()
        return [json.loads(line)["text"] for line in lines]

    return read


def test_one_text_and_several(classifier: Classifier) -> None:
    one = classifier("a lovely gem of a film")
    assert isinstance(one, Prediction)
    assert one.label in ("good", "bad", "odd")
    assert one.score is not None
    assert 1 / 3 <= one.score <= 1
    several = classifier(["a lovely gem of a film", "the dull town", "a lovely gem of a film"])
    assert [prediction.label for prediction in several] == [one.label, several[1].label, one.label]
    assert several[0].score == pytest.approx(one.score, abs=1e-5)
    assert classifier([]) == []
    assert len(classifier(text for text in ("a", "b"))) == 2
    assert len(classifier(np.array(["a", "b", "c"]))) == 3


def test_a_text_by_itself_and_among_others(classifier: Classifier, texts: Callable[[str], list[str]]) -> None:
    some = [*texts(KINDS[0])[:12], LONG]
    for wishes in ({}, {"full_depth": True}, {"max_layers": 1}, {"threshold": 0.3}, {}):
        together = classifier(some, **wishes)
        for text, expected in zip(some, together, strict=True):
            alone = classifier(text, **wishes)
            assert replace(alone, score=None) == replace(expected, score=None)
            assert alone.score == pytest.approx(expected.score, abs=1e-5)


def test_pairs(classifier: Classifier) -> None:
    pair = classifier(("a lovely gem", "the dull town"), full_depth=True)
    assert isinstance(pair, Prediction)
    first, second, other = classifier(
        [("a lovely gem", "the dull town"), ("the dull town", "a lovely gem"), "a lovely gem"], full_depth=True
    )
    assert first.score == pytest.approx(pair.score, abs=1e-5)
    assert len({round(prediction.score or 0, 4) for prediction in (first, second, other)}) == 3


def some_of(texts: list[str]) -> list[str]:
    """More than are read at once, and an empty and a long one."""
    return [*texts[:30], "", LONG]


@pytest.fixture(scope="module")
def slowly(
    classifiers: Callable[[str], Classifier], texts: Callable[[str], list[str]]
) -> Callable[[str], list[tuple[Any, list[Any]]]]:
    """Problem type -> settings, and what the slow one says with each of them of the texts, nothing and a long one."""

    @cache
    def get(kind: str) -> list[tuple[Any, list[Any]]]:
        classifier = classifiers(kind)
        encoded = classifier.tokenizer.encode(some_of(texts(kind)))
        settings = (classifier.setting(), *_settings(classifier, kind, encoded))
        return [(one, list(reference(classifier.runtime, one.criterion, encoded, one.knobs))) for one in settings]

    return get


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_the_engine_says_what_the_slow_one_says(
    classifiers: Callable[[str], Classifier],
    texts: Callable[[str], list[str]],
    slowly: Callable[[str], list[tuple[Any, list[Any]]]],
    kind: str,
    batch_size: int,
) -> None:
    loaded = classifiers(kind)
    classifier = Classifier(loaded.run, loaded.runtime, batch_size=batch_size)
    rule = {"single_label_classification": "edr", "regression": "patience_delta"}.get(kind, "entropy")
    assert classifier.default_point.criterion == rule
    some = some_of(texts(kind))
    for setting, slow in slowly(kind):
        fast = list(classifier.stream(some, setting, chunk=7))
        assert [one.exit_layer for one in fast] == [one.exit_layer for one in slow]
        for given, expected in zip(fast, (classifier.read(one) for one in slow), strict=True):
            if kind == "regression":
                assert given.label == pytest.approx(expected.label, abs=1e-5)
                assert given.score is None
            else:
                assert given.label == expected.label
                assert given.score == pytest.approx(expected.score, abs=1e-5)
        assert [one.truncated for one in fast] == [False] * (len(some) - 1) + [True]


def _settings(classifier: Classifier, kind: str, encoded: Any) -> Iterator[Any]:
    """Settings between two scores at which texts leave at several exits."""
    from offramp.engine.record import record

    trace = record(classifier.runtime, encoded, pad_token=0, id2label=classifier.run.id2label or {0: "value"})
    if kind == "regression":
        values = np.sort(np.abs(np.diff(trace.logits[:, :, 0], axis=0)).ravel().astype(np.float64))
    else:
        criterion: Any = make(classifier.default_point.criterion, problem_type=kind)
        values = np.sort(scores_of(trace, criterion)[:2].ravel())
    for share in (0.25, 0.5, 0.75):
        start = int(share * len(values))
        place = start + int(np.argmax(np.diff(values[start : start + 5])))  # the widest gap nearby
        middle = float(values[place] + values[place + 1]) / 2
        yield classifier.setting(knobs={"delta" if kind == "regression" else "threshold": middle})


@pytest.mark.parametrize("kind", KINDS)
def test_what_labels_are(
    classifiers: Callable[[str], Classifier], texts: Callable[[str], list[str]], kind: str
) -> None:
    classifier = classifiers(kind)
    predictions = classifier(texts(kind), full_depth=True)
    assert {prediction.exit_layer for prediction in predictions} == {3}
    for prediction in predictions:
        if kind == "regression":
            assert isinstance(prediction.label, float)
            assert prediction.score is None
        elif kind == "multi_label_classification":
            assert isinstance(prediction.label, list)
            assert set(prediction.label) <= {"good", "bad", "odd"}
        else:
            assert prediction.label in ("good", "bad", "odd")
    labels = [prediction.label for prediction in predictions]
    assert len({str(label) for label in labels}) > 1  # it has learnt something


def test_full_depth_is_the_plain_model(classifier: Classifier, trained: Path) -> None:
    import torch
    from transformers import AutoModelForSequenceClassification

    plain = AutoModelForSequenceClassification.from_pretrained(trained).eval()
    text = "a lovely gem of a film"
    encoded = classifier.encode([text])[0]
    with torch.no_grad():
        probabilities = plain(torch.from_numpy(encoded.tokens[None].astype(np.int64))).logits.softmax(-1)[0]
    assert classifier(text, full_depth=True).score == pytest.approx(float(probabilities.max()), abs=1e-5)


@pytest.mark.parametrize(
    ("options", "layers"),
    [
        ({"full_depth": True}, {3}),
        ({"threshold": 0.0}, {3}),
        ({"threshold": 1.01}, {1}),
        ({"knobs": {"threshold": 1.01}}, {1}),
        ({"threshold": 0.0, "max_layers": 2}, {2}),
        ({"knobs": {"threshold": 0.0}, "max_layers": 1}, {1}),
        ({"max_layers": 1}, {1}),
    ],
)
def test_options(classifier: Classifier, texts: Callable[[str], list[str]], options: Any, layers: set[int]) -> None:
    assert {one.exit_layer for one in classifier(texts(KINDS[0]), **options)} == layers


def test_speedup_chooses_on_the_trace_of_dev(classifier: Classifier, texts: Callable[[str], list[str]]) -> None:
    from offramp.calibration.sweep import choose
    from offramp.traces.store import load_trace

    setting = classifier.setting(speedup=1.5)
    point = choose(load_trace(classifier.run.folder / "traces" / "dev"), make("edr"), speedup=1.5)
    assert (setting.criterion, setting.knobs) == (make("edr"), point.knobs)
    layers = [one.layers_executed for one in classifier(texts(KINDS[0]), speedup=1.5)]
    assert 3 / np.mean(layers) >= 1.5
    assert classifier.setting(speedup=1.5, max_layers=2).knobs == {**point.knobs, "max_layers": 2}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": 0.1, "speedup": 2.0}, "threshold and speedup contradict"),
        ({"speedup": 2.0, "full_depth": True}, "speedup and full_depth contradict"),
        ({"full_depth": True, "max_layers": 2}, "full_depth and max_layers contradict"),
        ({"threshold": 0.1, "knobs": {"threshold": 0.1}}, "threshold and knobs contradict"),
        ({"threshold": -1.0}, "threshold must be between 0 and 1.01"),
        ({"threshold": float("nan")}, "threshold must be between"),
        ({"knobs": {"patience": 1}}, "leaves by 'edr', which has no patience"),
        ({"max_layers": 0}, "max_layers must be between 1"),
        ({"max_layers": 1.5}, "max_layers must be a whole number"),
        ({"speedup": 100.0}, "reaches a layer speed-up of 3.00 at most"),
    ],
)
def test_options_that_cannot_be(classifier: Classifier, options: Any, message: str) -> None:
    with pytest.raises(KnobError, match=message):
        classifier(["text"], **options)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ([3], "a text must be a string, or a tuple of two for a pair, not int"),
        ([None], "not NoneType"),
        ([b"bytes"], "not bytes"),
        ([["a", "b"]], "not list"),
        ([("a", "b", "c")], "not a tuple of 3"),
        (("a", "b", "c"), "not a tuple of 3"),
        ([("a", 1)], "text 1 is"),
        (["\ud800"], "half of a surrogate pair"),
    ],
)
def test_texts_that_are_none(classifier: Classifier, texts: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        classifier(texts)


def test_what_was_cut_is_said_once(classifier: Classifier, caplog: pytest.LogCaptureFixture) -> None:
    long = "gem " * 100
    setting = classifier.setting()
    with caplog.at_level(logging.WARNING):
        done = list(classifier.stream([long, "a", long, "b", long], setting, chunk=2))
    assert [one.truncated for one in done] == [True, False, True, False, True]
    assert [record.getMessage() for record in caplog.records] == [
        "3 of 5 texts are longer than the 48 tokens this model reads, and were cut"
    ]
    caplog.clear()
    assert classifier(long).truncated
    assert "a text is longer than the 48 tokens" in caplog.text


def test_a_stream_is_not_read_ahead_without_end(classifier: Classifier) -> None:
    drawn = 0

    def endless() -> Iterator[str]:
        nonlocal drawn
        while True:
            drawn += 1
            yield "a gem"

    answers = classifier.stream(endless(), classifier.setting(), chunk=10)
    for _ in range(100):
        next(answers)
    assert drawn <= 100 + 2 * 10


def test_runs_that_say_less(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    assert offramp.load(run).columns == offramp.load(trained).columns
    shutil.rmtree(run / "traces")
    with pytest.raises(KnobError, match=r"has no traces/dev.*offramp calibrate .* makes a point"):
        offramp.load(run)("text", speedup=2.0)
    (run / "operating_points.json").unlink()
    with pytest.raises(RunError, match="has no operating_points"):
        offramp.load(run)("text")
    assert offramp.load(run)("text", full_depth=True).exit_layer == 3
    config = json.loads((run / "config.json").read_text())
    del config["offramp"]["text_columns"]
    (run / "config.json").write_text(json.dumps(config))
    assert offramp.load(run).columns is None
    with pytest.raises(KnobError, match="batch_size must be a whole number of 1 or more, not 0"):
        offramp.load(run, batch_size=0)


@pytest.fixture
def pointless(trained: Path, tmp_path: Path) -> Path:
    """A run without operating points, and one point was all it had."""
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "operating_points.json").unlink()
    return run


def recipe_is(run: Path, name: str, **settings: Any) -> Path:
    config = json.loads((run / "config.json").read_text())
    config["offramp"] |= {"recipe": name, "recipe_settings": settings}
    (run / "config.json").write_text(json.dumps(config))
    return run


def test_without_points_knobs_are_those_of_the_recipes_criterion(
    pointless: Path, trained: Path, texts: Callable[[str], list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    classifier, whole = offramp.load(pointless), offramp.load(trained)
    for wish in ({"threshold": 0.3}, {"knobs": {"threshold": 0.3}}, {"threshold": 0.3, "max_layers": 2}):
        assert classifier.setting(**wish) == whole.setting(**wish)
    assert classifier(texts(KINDS[0]), threshold=0.3) == whole(texts(KINDS[0]), threshold=0.3)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"{pointless} has no operating_points.json: leaving by 'edr', as its recipe 'de3bert' has it"]
    assert classifier.setting(speedup=1.5) == whole.setting(speedup=1.5)
    with pytest.raises(KnobError, match="leaves by 'edr', which has no patience"):
        classifier.setting(knobs={"patience": 1})
    changed = offramp.load(recipe_is(pointless, "de3bert", **{"criterion.lam": 3.0}))
    assert changed.setting(threshold=0.3).criterion == make("edr", lam=3.0)
    patient = offramp.load(recipe_is(pointless, "pabee")).setting(knobs={"patience": 2})
    assert (patient.criterion, patient.knobs) == (make("patience"), {"patience": 2})


def test_without_points_the_command_is_named_that_makes_one(pointless: Path) -> None:
    def refused(**wishes: Any) -> str:
        with pytest.raises((KnobError, RunError)) as caught:
            offramp.load(pointless).setting(**wishes)
        return str(caught.value)

    said = f"{pointless} has no operating_points.json: `offramp calibrate {pointless} --data DATA"
    for wishes in ({}, {"max_layers": 2}):
        how = "--max-risk 0.01 --criterion edr` makes one, or give --threshold or --full-depth"
        assert refused(**wishes) == f"{said} {how}"
    (pointless / "traces" / "dev.safetensors").unlink()
    assert "--speedup 2 --criterion edr` makes a point" in refused(speedup=2.0)
    recipe_is(pointless, "righttool")  # its temperature was learned, and is lost
    how = "--criterion confidence` makes one, or give --full-depth"
    assert refused(threshold=0.1) == f"{said} --max-risk 0.01 {how}"
    assert refused(speedup=2.0) == f"{said} --speedup 2 {how}"
    recipe_is(pointless, "of somebody")
    how = "--max-risk 0.01 --criterion CRITERION` makes one, or give --full-depth"
    assert refused(threshold=0.1) == f"{said} {how}"


def test_what_is_no_number_is_refused_as_such(trained: Path) -> None:
    for wrong in ("3", 2.5, True, None, 0):
        with pytest.raises(KnobError, match="batch_size must be a whole number of 1 or more"):
            offramp.load(trained, batch_size=wrong)  # type: ignore[arg-type]
    for wrong in ("3", 2.5, True, 0):
        with pytest.raises(KnobError, match="batch_tokens must be a whole number of 1 or more"):
            offramp.load(trained, batch_tokens=wrong)  # type: ignore[arg-type]
    classifier = offramp.load(trained)
    for wishes in ({"threshold": "0.3"}, {"threshold": True}, {"max_layers": "2"}, {"knobs": {"threshold": None}}):
        with pytest.raises(KnobError, match="must be a number, not"):
            classifier("text", **wishes)
    with pytest.raises(KnobError, match="knobs must be a mapping from names to numbers"):
        classifier("text", knobs=[1])


@pytest.mark.parametrize("texts", [None, 5, {"text": "a"}, b"text"])
def test_what_is_no_text_at_all(trained: Path, texts: Any) -> None:
    with pytest.raises(DataError, match="give a text or a list of texts, not"):
        offramp.load(trained)(texts)


PROMISE = {"of": "disagreement", "confidence": 0.95, "expected": False}


@pytest.fixture
def calibrated(trained: Path, tmp_path: Path) -> Callable[..., Classifier]:
    """``calibrated(points)``: the trained run with these operating points after its default.

    What is promised was asked for, unless a point says otherwise.
    """
    from offramp.calibration.points import OperatingPoint, read_points, write_points

    def get(**points: dict[str, Any]) -> Classifier:
        run = Path(shutil.copytree(trained, tmp_path / "run"))
        usual: dict[str, Any] = {"criterion": "entropy", "runtime": "torch", "dtype": "float32"}
        made = []
        for name, given in points.items():
            asked = {"asked": {"max_risk": given["promise"]["risk"]}} if "promise" in given else {}
            made.append(OperatingPoint(**{"name": name, **usual, **asked, **given}))
        write_points(run, [*read_points(run), *made])
        return offramp.load(run)

    return get


def test_the_point_of_the_largest_risk_that_is_small_enough(calibrated: Callable[..., Classifier]) -> None:
    classifier = calibrated(
        slow={"knobs": {"threshold": 0.1}, "measured": {"layer_speedup": 1.1}, "promise": {"risk": 0.01, **PROMISE}},
        quick={"knobs": {"threshold": 0.5}, "measured": {"layer_speedup": 1.9}, "promise": {"risk": 0.02, **PROMISE}},
        rash={"knobs": {"threshold": 0.9}, "measured": {"layer_speedup": 2.9}, "promise": {"risk": 0.2, **PROMISE}},
        unsure={"knobs": {"threshold": 1.0}, "measured": {"layer_speedup": 3.0}},
    )
    for max_risk, threshold in ((0.01, 0.1), (0.02, 0.5), (0.05, 0.5), (0.2, 0.9), (1.0, 0.9)):
        setting = classifier.setting(max_risk=max_risk)
        assert setting.knobs == {"threshold": threshold}
        assert setting.criterion == make("entropy")
        assert setting.promise is not None
        assert setting.promise["risk"] <= max_risk
    assert classifier(["a gem"], max_risk=0.02) == classifier(["a gem"], max_risk=0.03)
    assert classifier.setting().promise is None
    with pytest.raises(KnobError, match=r"smallest risk that was promised is 1\.0 %: `offramp calibrate .* 0\.005`"):
        classifier("a gem", max_risk=0.005)
    with pytest.raises(KnobError, match=r"has a promise about error: `offramp calibrate .* --risk error`"):
        classifier("a gem", max_risk=0.05, risk="error")
    for wrong in (0.0, -1.0, 1.5, float("nan"), "0.02"):
        with pytest.raises(KnobError, match="max_risk must be above 0"):
            classifier("a gem", max_risk=wrong)  # type: ignore[arg-type]
    with pytest.raises(KnobError, match="max_risk and max_layers contradict"):
        classifier("a gem", max_risk=0.05, max_layers=2)
    with pytest.raises(KnobError, match="speedup and max_risk contradict"):
        classifier("a gem", max_risk=0.05, speedup=2.0)


def test_what_was_measured_has_no_say(calibrated: Callable[..., Classifier]) -> None:
    """Of equals the one made last, wherever it stands; a faster one that promises less is not the one that is meant."""
    promise = {"risk": 0.02, **PROMISE}
    classifier = calibrated(
        last={"knobs": {"threshold": 0.1}, "made": 3, "measured": {"layer_speedup": 1.1}, "promise": promise},
        first={"knobs": {"threshold": 0.2}, "made": 1, "measured": {"layer_speedup": 2.1}, "promise": promise},
        less={"knobs": {"threshold": 0.3}, "made": 4, "measured": {"layer_speedup": 3.0},
              "promise": {"risk": 0.01, **PROMISE}},
        fast={"knobs": {"threshold": 0.9}, "made": 5, "measured": {"layer_speedup": 3.0}, "asked": {"speedup": 2.0},
              "promise": {"risk": 0.018, **PROMISE}},
        drop={"knobs": {"threshold": 0.9}, "made": 6, "measured": {"layer_speedup": 3.0}, "asked": {"max_drop": 1.0},
              "promise": {"risk": 0.005, **PROMISE}},
    )  # fmt: skip
    for max_risk, threshold in ((0.02, 0.1), (0.5, 0.1), (0.019, 0.3)):
        assert classifier.setting(max_risk=max_risk).knobs == {"threshold": threshold}
    with pytest.raises(KnobError, match=r"smallest risk that was promised is 1\.0 %"):
        classifier.setting(max_risk=0.005)
    classifier.points = [point for point in classifier.points if "max_risk" not in point.asked]
    with pytest.raises(KnobError, match=r"a promise that was asked for \(--speedup and --max-drop only tell what"):
        classifier.setting(max_risk=0.02)
    with pytest.raises(KnobError, match=r"has a promise about error: `offramp calibrate"):
        classifier.setting(max_risk=0.02, risk="error")


def test_of_equal_promises_the_one_made_here_is_meant(calibrated: Callable[..., Classifier]) -> None:
    promise = {"risk": 0.02, **PROMISE}
    classifier = calibrated(
        here={"knobs": {"threshold": 0.1}, "made": 1, "promise": promise},
        there={"knobs": {"threshold": 0.2}, "made": 2, "promise": promise, "runtime": "onnx"},
    )
    assert classifier.setting(max_risk=0.02).knobs == {"threshold": 0.1}
    assert served(classifier, name="onnx").setting(max_risk=0.02).knobs == {"threshold": 0.2}


def test_points_that_were_listed_before_they_were_counted(calibrated: Callable[..., Classifier]) -> None:
    promise = {"risk": 0.02, **PROMISE}
    classifier = calibrated(
        one={"knobs": {"threshold": 0.1}, "promise": promise}, two={"knobs": {"threshold": 0.2}, "promise": promise}
    )
    assert classifier.setting(max_risk=0.02).knobs == {"threshold": 0.2}


def test_promises_about_several_risks(calibrated: Callable[..., Classifier]) -> None:
    classifier = calibrated(
        one={"knobs": {"threshold": 0.1}, "promise": {"risk": 0.01, **PROMISE}},
        two={"knobs": {"threshold": 0.5}, "promise": {"risk": 0.01, **PROMISE, "of": "error"}},
        three={"knobs": {"threshold": 0.6}, "promise": {"risk": 0.01, **PROMISE, "expected": True}},
    )
    with pytest.raises(KnobError, match="promises about disagreement and error and expected disagreement: say which"):
        classifier("a gem", max_risk=0.01)
    for risk, threshold in (("disagreement", 0.1), ("error", 0.5), ("expected disagreement", 0.6)):
        assert classifier.setting(max_risk=0.01, risk=risk).knobs == {"threshold": threshold}


def test_nothing_was_promised(classifier: Classifier) -> None:
    with pytest.raises(KnobError, match=r"no operating point of .* has a promise: `offramp calibrate"):
        classifier("a gem", max_risk=0.01)


def test_a_point_calibrated_for_a_speed_is_taken_for_it(calibrated: Callable[..., Classifier]) -> None:
    classifier = calibrated(
        fast={"knobs": {"threshold": 0.7}, "asked": {"speedup": 1.5}, "promise": {"risk": 0.03, **PROMISE}}
    )
    setting = classifier.setting(speedup=1.5)
    assert (setting.knobs, setting.promise) == ({"threshold": 0.7}, {"risk": 0.03, **PROMISE})
    capped = classifier.setting(speedup=1.5, max_layers=2)
    assert (capped.knobs, capped.promise, capped.point) == ({"threshold": 0.7, "max_layers": 2}, None, None)


def test_the_next_faster_point_is_taken_before_the_trace_of_dev(
    calibrated: Callable[..., Classifier], caplog: pytest.LogCaptureFixture
) -> None:
    classifier = calibrated(
        faster={"knobs": {"threshold": 0.9}, "asked": {"speedup": 2.5}},
        fast={"knobs": {"threshold": 0.7}, "asked": {"speedup": 1.5}},
        forced={"knobs": {"threshold": 0.8}, "asked": {"speedup": 1.6},
                "promise": {"risk": 0.01, **PROMISE, "forced": "on texts it knows"}},
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        for speedup, threshold in ((1.2, 0.7), (1.5, 0.7), (1.51, 0.9), (2.5, 0.9)):
            assert classifier.setting(speedup=speedup).knobs == {"threshold": threshold}
        assert not caplog.records
        for more in ({}, {"max_layers": 2}):
            with pytest.raises(KnobError) as refused:
                classifier.setting(speedup=2.6, **more)  # type: ignore[typeddict-item]
            folder = classifier.run.folder
            assert str(refused.value) == (
                f"no operating point of {folder} was calibrated for a layer speed-up of 2.6, the highest is 2.5: "
                f"`offramp calibrate {folder} --data DATA --speedup 2.6` makes one, or ask for less"
            )
    assert not caplog.records
    with pytest.raises(KnobError, match="--speedup 3 --runtime onnx --dtype int8` makes one"):
        served(classifier, name="onnx", dtype="int8").setting(speedup=3)
    for wrong in (0.5, float("nan"), "2"):
        with pytest.raises(KnobError, match="a layer speed-up is 1 or more"):
            classifier.setting(speedup=wrong)  # type: ignore[arg-type]


def test_a_speed_that_nobody_calibrated_is_told_each_time(
    calibrated: Callable[..., Classifier], caplog: pytest.LogCaptureFixture
) -> None:
    classifier = calibrated(other={"promise": {"risk": 0.01, **PROMISE}})
    with caplog.at_level(logging.WARNING):
        for speedup in (1.2, 1.5, 1.2):
            assert classifier.setting(speedup=speedup).promise is None
    told = [record.getMessage() for record in caplog.records]
    assert len(told) == 2
    for said, speedup in zip(told, (1.2, 1.5), strict=True):
        assert said.startswith(
            f"nothing was calibrated for a layer speed-up of {speedup}, so thresholds are chosen on the dev trace"
        )
        assert said.endswith(f"--data DATA --speedup {speedup}` makes a point for it")


def test_a_speed_is_taken_from_what_serves(calibrated: Callable[..., Classifier]) -> None:
    classifier = calibrated(
        here={"knobs": {"threshold": 0.5}, "asked": {"speedup": 2.0}},
        there={"knobs": {"threshold": 0.7}, "asked": {"speedup": 2.0}, "runtime": "onnx", "dtype": "int8"},
    )
    assert classifier.setting(speedup=2.0).knobs == {"threshold": 0.5}
    assert served(classifier, name="onnx", dtype="int8").setting(speedup=2.0).knobs == {"threshold": 0.7}


def served(classifier: Classifier, **info: Any) -> Classifier:
    """The same on a runtime that says it is another."""
    from dataclasses import replace

    class Other:
        def __init__(self) -> None:
            self.info = replace(classifier.runtime.info, **info)

    return Classifier(classifier.run, Other())  # type: ignore[arg-type]


def test_a_promise_is_about_these_weights(
    calibrated: Callable[..., Classifier], caplog: pytest.LogCaptureFixture
) -> None:
    from offramp.calibration.points import write_points
    from offramp.run import weights_hash

    classifier = calibrated(
        old={"knobs": {"threshold": 0.9}, "measured": {"layer_speedup": 2.0},
             "promise": {"risk": 0.05, **PROMISE, "model": "abc"}},
    )  # fmt: skip
    with pytest.raises(KnobError) as said:
        classifier("a gem", max_risk=0.05)
    assert str(said.value) == (
        f"what operating point 'old' promises is about other weights than those of {classifier.run.folder}: `offramp "
        f"calibrate {classifier.run.folder} --data DATA --max-risk 0.05` makes one for here"
    )
    folder = classifier.run.folder
    own = {"risk": 0.05, **PROMISE, "model": weights_hash(folder)}
    new = OperatingPoint(
        name="new", criterion="entropy", knobs={"threshold": 0.1}, promise=own, asked={"max_risk": 0.05}
    )
    write_points(folder, [classifier.points[-1], new])
    again = offramp.load(folder)
    assert again.setting(max_risk=0.05).knobs == {"threshold": 0.1}  # slower, but what it promises holds
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert again.setting().promise is None  # the old one is the default
    [warned] = [record.getMessage() for record in caplog.records]
    assert "'old' promises is about other weights" in warned
    assert "is not promised here: `offramp calibrate` makes one for here" in warned


@pytest.mark.parametrize(
    ("made_on", "here", "refused"),
    [
        # In float32 an export gives the same numbers, but for the last digits.
        ({"runtime": "torch", "dtype": "float32"}, {"name": "onnx"}, False),
        ({"runtime": "torch", "dtype": "float32"}, {"name": "onnx", "dtype": "int8"}, True),
        ({"runtime": "onnx", "dtype": "int8"}, {"name": "openvino", "dtype": "int8"}, True),
        ({"runtime": "onnx", "dtype": "int8"}, {}, True),
        ({"runtime": "torch", "dtype": "bfloat16"}, {}, True),
        ({"runtime": "onnx", "dtype": "int8"}, {"name": "onnx", "dtype": "int8"}, False),
        ({"runtime": "", "dtype": ""}, {"name": "onnx"}, False),
    ],
)
def test_a_promise_is_about_what_serves(
    calibrated: Callable[..., Classifier], made_on: dict[str, str], here: dict[str, str], refused: bool
) -> None:
    classifier = calibrated(one={"knobs": {"threshold": 0.5}, "promise": {"risk": 0.01, **PROMISE}, **made_on})
    classifier = served(classifier, **here)
    if not refused:
        setting = classifier.setting(max_risk=0.01)
        assert setting.promise is not None
        return
    with pytest.raises(KnobError, match=f"'one' promises is about runtime {made_on['runtime']}, dtype") as said:
        classifier.setting(max_risk=0.01)
    elsewhere = f" --runtime {here['name']} --dtype int8" if here else ""
    assert f"--max-risk 0.01{elsewhere}` makes one for here" in str(said.value)


@pytest.mark.parametrize("more", [{}, {"batch_size": 32, "knobs": {"threshold": 0.5}}])
def test_where_neighbours_matter_a_promise_is_about_a_batch_size(
    calibrated: Callable[..., Classifier], more: dict[str, Any]
) -> None:
    made_on = {"runtime": "onnx", "dtype": "int8", "promise": {"risk": 0.01, **PROMISE}}
    one = {"knobs": {"threshold": 0.9}, "measured": {"layer_speedup": 2.0}, "batch_size": 1, **made_on}
    classifier = calibrated(other=one | more, one=one)
    here = {"name": "onnx", "dtype": "int8"}
    assert served(classifier, **here).setting(max_risk=0.01).knobs == {"threshold": 0.9}
    classifier = served(classifier, **here, batch_invariant=False)
    if more:
        assert classifier.setting(max_risk=0.01).knobs == {"threshold": 0.5}
        return
    with pytest.raises(KnobError, match=r"runtime onnx, dtype int8, batch size 1, and this is .*batch size 32") as said:
        classifier.setting(max_risk=0.01)
    assert "--runtime onnx --dtype int8 --batch-size 32` makes one for here" in str(said.value)


@pytest.mark.parametrize(
    ("measured", "words"),
    [
        (None, "how much was not measured"),
        (InCompany(0.3, labels=0.9996, exits=0.97), "99.9 % of labels at the worst exit and 97.0 % of exits agree wi"),
        (InCompany(0.3, labels=1.0), "100.0 % of labels at the worst exit agree with batch size 1, as"),
        (InCompany(0.25), "a number differs by up to 0.25 from that at batch size 1, as the export measured in batc"),
        (InCompany(0.25, exits=0.5), "a number differs by up to 0.25 from that at batch size 1 and 50.0 % of exits"),
    ],
)
def test_how_much_neighbours_matter_in_words(
    classifier: Classifier, caplog: pytest.LogCaptureFixture, measured: InCompany | None, words: str
) -> None:
    info = replace(FakeRuntime().info, batch_invariant=False, in_company=measured)
    with caplog.at_level(logging.WARNING):
        Chooser(classifier.run, [], info, 1).warn_of_neighbours()
        Chooser(classifier.run, [], replace(info, batch_invariant=True), 32).warn_of_neighbours()
        assert not caplog.records
        chooser = Chooser(classifier.run, [], info, 32)
        for _ in range(2):
            chooser.warn_of_neighbours()
    [said] = [record.getMessage() for record in caplog.records]
    assert f"share a batch ({words}" in said
    assert said.endswith("--data DATA --max-risk 0.01 --runtime fake --dtype float32 --batch-size 32`")


@pytest.mark.parametrize(("dtype", "batch_size", "told"), [("bfloat16", 32, 1), ("bfloat16", 1, 0), ("float32", 32, 0)])
def test_load_says_that_neighbours_matter(
    trained: Path, caplog: pytest.LogCaptureFixture, dtype: str, batch_size: int, told: int
) -> None:
    with caplog.at_level(logging.WARNING):
        offramp.load(trained, device="cpu", dtype=dtype, batch_size=batch_size)
    assert [record.getMessage().partition(":")[0] for record in caplog.records] == told * [
        "on runtime torch in bfloat16 answers depend a little on which texts share a batch (how much was not measured)"
    ] + (dtype == "bfloat16") * [
        "operating point 'default' was chosen on dtype float32"
        f"{', batch size 32' if batch_size != 32 else ''} and runs on dtype bfloat16"
        f"{', batch size 1' if batch_size != 32 else ''}"
    ]


@pytest.mark.parametrize("monitored", [False, True])
@pytest.mark.parametrize("batch_tokens", [None, 100])
def test_many_long_texts_share_no_batch(
    trained: Path, monkeypatch: pytest.MonkeyPatch, batch_tokens: int | None, monitored: bool
) -> None:
    """Memory is bounded in tokens: a batch size of short texts is not one of long texts."""
    classifier = offramp.load(
        trained, runtime="torch", device="cpu", dtype="float32", batch_size=128, batch_tokens=batch_tokens,
        monitor=Monitor() if monitored else None,
    )  # fmt: skip
    most, computed, embed = batch_tokens or 2048, [], classifier.runtime.embed

    def seen(inputs: Any) -> Any:
        computed.append(inputs["tokens"].shape)
        return embed(inputs)

    monkeypatch.setattr(classifier.runtime, "embed", seen)
    texts = ["gem " * 46] * 120 + ["gem"] * 120  # 48 tokens, which is all that the model reads, and 3
    answers = list(classifier.stream(texts, classifier.setting()))
    assert len(answers) == 240
    assert all(rows * width <= most for rows, width in computed)
    assert max(rows for rows, width in computed if width == 48) == most // 48
    computed.clear()
    encoded, names = classifier.encode(texts), classifier.run.id2label
    record(classifier.runtime, encoded, pad_token=0, id2label=names, batch_size=128)
    assert sum(rows for rows, _ in computed) == 240
    assert all(rows * width <= 2048 for rows, width in computed)


def test_a_promise_that_is_less_sure_is_not_taken(calibrated: Callable[..., Classifier]) -> None:
    classifier = calibrated(
        sure={"knobs": {"threshold": 0.1}, "measured": {"layer_speedup": 1.1}, "promise": {"risk": 0.01, **PROMISE}},
        rash={"knobs": {"threshold": 0.9}, "measured": {"layer_speedup": 2.9},
              "promise": {"risk": 0.01, **PROMISE, "confidence": 0.2}},
        mean={"knobs": {"threshold": 0.5}, "promise": {"risk": 0.005, **PROMISE, "expected": True, "confidence": None}},
    )  # fmt: skip
    for confidence, threshold in ((0.95, 0.1), (0.9, 0.1), (0.2, 0.9), (0.1, 0.9)):
        found = classifier.setting(max_risk=0.01, risk="disagreement", confidence=confidence)
        assert found.knobs == {"threshold": threshold}
    assert classifier.setting(max_risk=0.01, risk="expected disagreement", confidence=0.999).knobs == {"threshold": 0.5}
    assert classifier.setting(max_risk=0.01, risk="disagreement").knobs == {"threshold": 0.1}
    with pytest.raises(KnobError) as said:
        classifier("a gem", max_risk=0.01, risk="disagreement", confidence=0.99)
    assert str(said.value) == (
        "1.0 % was promised about disagreement with a confidence of 95 %, not of 99 %: `offramp calibrate "
        f"{classifier.run.folder} --data DATA --max-risk 0.01 --confidence 0.99` makes one, or ask for confidence=0.95 "
        "(--confidence)"
    )
    with pytest.raises(KnobError, match="a confidence lies between 0 and 1"):
        classifier("a gem", max_risk=0.01, confidence=95)
    with pytest.raises(KnobError, match="confidence says how sure a promise shall be: give max_risk with it"):
        classifier("a gem", confidence=0.99)


def test_a_forced_promise_is_not_taken(calibrated: Callable[..., Classifier]) -> None:
    classifier = calibrated(forced={"promise": {"risk": 0.01, **PROMISE, "forced": "on texts it knows"}})
    with pytest.raises(KnobError, match=r"no operating point of .* has a promise: `offramp calibrate"):
        classifier("a gem", max_risk=0.01)


@pytest.mark.parametrize(
    ("made_on", "message"),
    [
        ({"runtime": "onnx"}, "chosen on runtime onnx and runs on runtime torch"),
        ({"dtype": "bfloat16"}, "chosen on dtype bfloat16 and runs on dtype float32"),
        ({"runtime": "onnx", "promise": {"risk": 0.1, **PROMISE}}, "what was promised there is not promised here"),
        ({"dtype": ""}, None),  # points of older runs do not say
        ({}, None),
    ],
)
def test_thresholds_of_another_runtime_are_told_once(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, made_on: dict[str, Any], message: str | None
) -> None:
    from dataclasses import replace

    from offramp.calibration.points import read_points, write_points

    run = Path(shutil.copytree(trained, tmp_path / "run"))
    write_points(run, [replace(point, **made_on) for point in read_points(run)])
    with caplog.at_level(logging.WARNING):
        classifier = offramp.load(run)
        assert len(caplog.records) == (message is not None)  # before the first text comes
        classifier("a gem", full_depth=True)
        classifier("a gem")
        classifier("a gem", threshold=0.2)
    assert [message in record.getMessage() for record in caplog.records] == ([] if message is None else [True])
