from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.errors import DataError, KnobError
from offramp.inputs.files import Columns
from offramp.tasks import make_task
from offramp.training.data import TrainingData, load_data, load_examples, row_hashes


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def labelled(labels: list[Any]) -> list[dict[str, Any]]:
    return [{"text": f"text {i}", "label": label} for i, label in enumerate(labels)]


def load(tmp_path: Path, labels: list[Any], **options: Any) -> TrainingData:
    """Training rows with these labels, and the same again as dev."""
    write(tmp_path / "train.jsonl", labelled(labels))
    write(tmp_path / "dev.jsonl", labelled(labels))
    return load_data(str(tmp_path), **options)


# Labels


@pytest.mark.parametrize(
    ("labels", "kind", "names", "expected"),
    [
        (["pos", "neg", "pos"], "single", ["neg", "pos"], [1, 0, 1]),
        ([2, 0, 1], "single", ["0", "1", "2"], [2, 0, 1]),
        (["10", "9", "9"], "single", ["9", "10"], [1, 0, 0]),
        ([5, 1, 3], "single", ["1", "3", "5"], [2, 0, 1]),
        ([-1, 1], "single", ["-1", "1"], [0, 1]),
        ([True, False], "single", ["false", "true"], [1, 0]),
        (["a", 1], "single", ["1", "a"], [1, 0]),
        ([5.0, 4.75], "regression", ["label"], [5.0, 4.75]),
        ([1, 2.5], "regression", ["label"], [1, 2.5]),
        (["1.0", "-2e3"], "regression", ["label"], [1, -2000]),
        (["nan", "inf"], "single", ["inf", "nan"], [1, 0]),
        ([["a"], ["c", "b"], []], "multi", ["a", "b", "c"], [[1, 0, 0], [0, 1, 1], [0, 0, 0]]),
        ([[0], [2, 10]], "multi", ["0", "2", "10"], [[1, 0, 0], [0, 1, 1]]),
        ([[0, 1], [1, 1]], "multi", ["0", "1"], [[0, 1], [1, 1]]),
    ],
)
def test_labels_are_understood(tmp_path: Path, labels: Any, kind: str, names: list[str], expected: Any) -> None:
    data = load(tmp_path, labels)
    assert data.problem_type.startswith(kind)
    assert data.id2label == dict(enumerate(names))
    assert data.train.labels is not None
    assert data.train.labels.tolist() == expected
    assert data.columns == Columns(("text",), "label")


def test_problem_type_is_overridable(tmp_path: Path) -> None:
    assert load(tmp_path, [1, 2, 3], problem_type="regression").train.labels.tolist() == [1, 2, 3]
    single = load(tmp_path, [1.0, 2.0, 0.0], problem_type="single_label_classification")
    assert single.train.labels.tolist() == [1, 2, 0]
    joined = load(tmp_path, ["a|b", "c, d", "", "b"], problem_type="multi_label_classification")
    # Bars part names here, so a comma belongs to a name; an empty cell says that no label applies.
    assert joined.id2label == {0: "a", 1: "b", 2: "c, d"}
    assert joined.train.labels.astype(int).tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 1, 0]]


def test_regression_that_was_inferred_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    data = load(tmp_path, [1.0, 2.0])
    assert "--problem_type" in data.notes[0]
    assert data.notes[0] in caplog.text


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", None, "b"], "line 2 has no label"),
        (["a", {"b": 1}], r"line 2: a label must be a name or a number, not \{'b': 1\}"),
        (["a|b", ""], "line 2 has no label.*--problem-type multi_label_classification"),
        (["a", "b", " "], "line 3 has no label"),
        (["a", "a", "a"], "every row has the label 'a'"),
        (["a"], "fewer than two rows"),
        ([], "is empty"),
        ([["a"], None], "line 2 has no label"),
        ([["a"], 3], r"line 2: the labels must be a list of names"),
        ([["a"], [""]], "line 2 has an empty name"),
        ([[], []], "no row has any label"),
    ],
)
def test_labels_that_training_cannot_use(tmp_path: Path, labels: Any, message: str) -> None:
    with pytest.raises(DataError, match=rf"train\.jsonl.*{message}"):
        load(tmp_path, labels)


def test_a_dev_label_never_seen_in_training(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", labelled(["a", "b"]))
    write(tmp_path / "dev.jsonl", labelled(["a", "new"]))
    with pytest.raises(DataError, match=r"dev\.jsonl, line 2: label 'new' .*\(a, b\)"):
        load_data(str(tmp_path))


def test_texts_that_training_cannot_use(tmp_path: Path) -> None:
    file = write(tmp_path / "a.jsonl", [{"text": "a", "label": 0}, {"label": 1}])
    with pytest.raises(DataError, match=r"a\.jsonl, line 2 has no 'text'"):
        load_data(file)
    with pytest.raises(DataError, match="no column 'gold'"):
        load_data(file, label_column="gold")


# Where rows come from


@pytest.mark.parametrize(
    ("files", "dev", "noted"),
    [
        (["train.jsonl", "dev.jsonl", "test.jsonl"], "dev.jsonl", False),
        (["train.jsonl", "validation.jsonl", "test.jsonl"], "validation.jsonl", False),
        (["train.jsonl", "valid.jsonl"], "valid.jsonl", False),
        (["train.jsonl", "test.jsonl"], "test.jsonl", True),
    ],
)
def test_the_dev_part_of_a_folder(
    tmp_path: Path, files: list[str], dev: str, noted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    for file in files:
        write(tmp_path / file, labelled(["a", "b"]))
    data = load_data(str(tmp_path))
    assert data.train.source == str(tmp_path / "train.jsonl")
    assert data.dev.source == str(tmp_path / dev)
    assert any("test part serves as dev" in note for note in data.notes) is noted
    assert ("test part serves as dev" in caplog.text) is noted
    assert load_examples(str(tmp_path), make_task(data.problem_type, data.id2label)).source == data.dev.source


def test_dev_given_wins(tmp_path: Path) -> None:
    for name in ("train", "test", "mine"):
        write(tmp_path / f"{name}.jsonl", labelled(["a", "b"]))
    data = load_data(str(tmp_path), dev=str(tmp_path / "mine.jsonl"))
    assert data.dev.source.endswith("mine.jsonl")
    assert data.notes == ()
    assert load_data(str(tmp_path / "train.jsonl"), dev=str(tmp_path / "mine.jsonl")).dev.source.endswith("mine.jsonl")


def test_pairs_and_other_formats(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("label,hypothesis,premise\nyes,b,a\nno,d,c\n")
    write(tmp_path / "dev.jsonl", [{"premise": "x", "hypothesis": "y", "label": "no"}])
    data = load_data(str(tmp_path))
    assert data.train.texts == [("a", "b"), ("c", "d")]
    assert data.dev.texts == [("x", "y")]
    assert data.train.numbers == [2, 3]


def test_folders_and_names_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "other.bin").touch()
    with pytest.raises(DataError, match=r"neither train\.\* nor dev\.\* \(but other\.bin\)"):
        load_data(str(tmp_path))
    write(tmp_path / "dev.jsonl", labelled(["a", "b"]))
    with pytest.raises(DataError, match="has no train file"):
        load_data(str(tmp_path))
    write(tmp_path / "train.jsonl", labelled(["a", "b"]))
    (tmp_path / "train.csv").touch()
    with pytest.raises(DataError, match=r"several train files \(train\.csv, train\.jsonl\)"):
        load_data(str(tmp_path))
    for name in ("./absent", str(tmp_path / "absent"), "absent.csv"):
        with pytest.raises(DataError, match="no file or folder"):
            load_data(name)


# Splits and limits


def test_a_file_is_split_nine_to_one_by_class(tmp_path: Path) -> None:
    labels = ["common"] * 60 + ["rare"] * 39 + ["once"]
    file = write(tmp_path / "a.jsonl", labelled(labels))
    data = load_data(file, seed=7)
    numbers = [*data.train.numbers, *data.dev.numbers]
    assert sorted(numbers) == list(range(1, 101))  # every row once
    assert len(data.dev) == 10
    counts = Counter(labels[number - 1] for number in data.dev.numbers)
    assert counts == {"common": 6, "rare": 4}  # to within one of a tenth; the only "once" stays in training
    for part in (data.train, data.dev):
        assert part.numbers == sorted(part.numbers)
        assert part.texts == [f"text {number - 1}" for number in part.numbers]
        assert [data.id2label[i] for i in part.labels] == [labels[number - 1] for number in part.numbers]
    assert load_data(file, seed=7).dev.numbers == data.dev.numbers
    assert load_data(file, seed=8).dev.numbers != data.dev.numbers
    assert "10 of 100 rows were held out" in data.notes[0]


@pytest.mark.parametrize("labels", [["a", "b"], ["a", "a", "b"], [0.5, 1.5], [["a"], ["b"]]])
def test_the_smallest_splits(tmp_path: Path, labels: list[Any]) -> None:
    data = load_data(write(tmp_path / "a.jsonl", labelled(labels)))
    assert (len(data.train), len(data.dev)) == (len(labels) - 1, 1)


def test_limit_draws_over_all_classes_and_keeps_all_names(tmp_path: Path) -> None:
    labels = [f"class{i // 20}" for i in range(100)]  # sorted by class, as files often are
    write(tmp_path / "train.jsonl", labelled(labels))
    write(tmp_path / "dev.jsonl", labelled(labels))
    data = load_data(str(tmp_path), limit=10)
    assert len(data.id2label) == 5
    assert Counter(data.train.labels.tolist()) == dict.fromkeys(range(5), 2)
    task = make_task(data.problem_type, data.id2label)
    assert load_examples(str(tmp_path), task, limit=10).numbers == data.dev.numbers
    assert len(load_examples(str(tmp_path), task, limit=1000)) == 100
    with pytest.raises(KnobError, match="limit must be 1 row"):
        load_examples(str(tmp_path), task, limit=0)


# load_examples


def test_examples_for_a_task_that_is_known(tmp_path: Path) -> None:
    task = make_task("single_label_classification", {0: "neg", 1: "pos"})
    file = write(tmp_path / "a.jsonl", [{"body": "x", "gold": 1}, {"body": "y", "gold": "neg"}])
    for told in ({"text_columns": ["body"], "label_column": "gold"}, {"prefer": Columns(("body",), "gold")}):
        examples = load_examples(file, task, **told)
        assert (examples.texts, examples.labels.tolist(), examples.numbers) == (["x", "y"], [1, 0], [1, 2])
    with pytest.raises(DataError, match="label column"):
        load_examples(file, task)
    write(tmp_path / "folder" / "train.jsonl", labelled(["pos", "neg"]))
    with pytest.raises(DataError, match="no dev part"):
        load_examples(str(tmp_path / "folder"), task)


def test_labels_only_where_needed(tmp_path: Path) -> None:
    task = make_task("single_label_classification", {0: "neg", 1: "pos"})
    some = write(tmp_path / "some.jsonl", labelled(["pos", None]))
    assert load_examples(some, task, need_labels=False).labels is None
    with pytest.raises(DataError, match="line 2 has no label"):
        load_examples(some, task)
    every = write(tmp_path / "every.jsonl", labelled(["pos", "neg"]))
    assert load_examples(every, task, need_labels=False).labels.tolist() == [1, 0]
    (tmp_path / "a.txt").write_text("one\n\nthree")
    plain = load_examples(str(tmp_path / "a.txt"), task, need_labels=False)
    assert (plain.texts, plain.labels) == (["one", "", "three"], None)


def test_preferred_columns_stand_between_those_given_and_the_usual_names(tmp_path: Path) -> None:
    task = make_task("single_label_classification", {0: "neg", 1: "pos"})
    row = {"text": "usual", "label": "pos", "body": "preferred", "gold": "neg", "other": "given", "third": "pos"}
    file, prefer = write(tmp_path / "a.jsonl", [row]), Columns(("body",), "gold")
    assert load_examples(file, task, prefer=prefer).texts == ["preferred"]
    assert load_examples(file, task, prefer=prefer).labels.tolist() == [0]
    given = load_examples(file, task, text_columns=["other"], label_column="third", prefer=prefer)
    assert (given.texts, given.labels.tolist()) == (["given"], [1])
    usual = load_examples(file, task, prefer=Columns(("absent",), "absent too"))
    assert (usual.texts, usual.labels.tolist()) == (["usual"], [1])


def test_single_texts_are_not_taken_for_the_pairs_a_model_was_trained_on(tmp_path: Path) -> None:
    task = make_task("single_label_classification", {0: "neg", 1: "pos"})
    single = write(tmp_path / "single.jsonl", [{"text": "a", "label": "pos"}])
    pair = write(tmp_path / "pair.jsonl", [{"premise": "a", "hypothesis": "b", "label": "pos"}])
    trained_on_pairs, trained_on_texts = Columns(("sentence1", "sentence2"), "label"), Columns(("text",), "label")
    with pytest.raises(DataError, match=r"has text in text, but the model was trained on sentence1, sentence2, a pair"):
        load_examples(single, task, prefer=trained_on_pairs)
    with pytest.raises(DataError, match=r"has text in premise and hypothesis, but .* on text, a single text"):
        load_examples(pair, task, prefer=trained_on_texts)
    assert load_examples(pair, task, prefer=trained_on_pairs).texts == [("a", "b")]
    assert load_examples(pair, task, text_columns=["premise"], prefer=trained_on_texts).texts == ["a"]


# The hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Stands in for the network: what load_dataset gives, and what it was asked."""
    datasets = pytest.importorskip("datasets")
    asked: dict[str, Any] = {}

    def load_dataset(name: str, config: str | None) -> Any:
        asked["name"], asked["config"] = name, config
        if "splits" not in asked:
            raise ConnectionError(f"Couldn't reach {name!r}\nand much more")
        return asked["splits"]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    asked["datasets"] = datasets
    return asked


def split(hub: dict[str, Any], columns: dict[str, list[Any]], **features: Any) -> Any:
    datasets = hub["datasets"]
    types = {name: features.get(name, datasets.Value("string")) for name in columns}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(types))


def test_hub_names_and_class_names(hub: dict[str, Any]) -> None:
    label = hub["datasets"].ClassLabel(names=["wrong", "fine", "absent"])
    train = split(hub, {"sentence": ["a", "b", "c"], "label": [0, 1, 1]}, label=label)
    dev = split(hub, {"sentence": ["d"], "label": [1]}, label=label)
    test = split(hub, {"sentence": ["e"], "label": [-1]}, label=label)
    hub["splits"] = {"test": test, "train": train, "validation": dev}
    data = load_data("nyu-mll/glue:sst2")
    assert (hub["name"], hub["config"]) == ("nyu-mll/glue", "sst2")
    assert data.id2label == {0: "wrong", 1: "fine", 2: "absent"}  # in their own order, not by name
    assert data.train.labels.tolist() == [0, 1, 1]
    assert (data.dev.texts, data.dev.source) == (["d"], "nyu-mll/glue:sst2 (validation)")
    hub["splits"] = {"train": train, "test": test}
    with pytest.raises(DataError, match=r"nyu-mll/glue:sst2 \(test\), row 1 has no label"):
        load_data("nyu-mll/glue:sst2")
    task = make_task(data.problem_type, data.id2label)
    assert load_examples("nyu-mll/glue:sst2", task, need_labels=False).labels is None
    hub["splits"] = {"train": train}
    assert len(load_data("imdb").dev) == 1
    assert hub["config"] is None


def test_hub_lists_of_labels_and_numbers(hub: dict[str, Any]) -> None:
    datasets = hub["datasets"]
    labels = datasets.List(datasets.ClassLabel(names=["joy", "anger"]))
    train = split(hub, {"text": ["a", "b"], "labels": [[0, 1], []]}, labels=labels)
    hub["splits"] = {"train": train, "validation": train}
    data = load_data("some/emotions")
    assert (data.problem_type, data.id2label) == ("multi_label_classification", {0: "joy", 1: "anger"})
    assert data.train.labels.tolist() == [[True, True], [False, False]]
    train = split(hub, {"text": ["a", "b"], "score": [1.0, 2.0]}, score=datasets.Value("float32"))
    hub["splits"] = {"train": train, "validation": train}
    assert load_data("some/scores").problem_type == "regression"


def test_hub_that_cannot_be_reached(hub: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=r"some/thing is no file .* \(Couldn't reach 'some/thing'\): check") as caught:
        load_data("some/thing")
    assert "\n" not in str(caught.value)
    hub["splits"] = {"extra": None}
    with pytest.raises(DataError, match=r"neither a train nor a validation split \(but extra\)"):
        load_data("some/thing")


def test_hub_that_does_not_answer_is_asked_once(hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its library would try six times, and tell of each; what it gave before is taken from its cache."""
    import huggingface_hub

    class Network:
        asked = 0

        def head(self, *_: Any, **__: Any) -> None:
            self.asked += 1
            raise TimeoutError

    def load_dataset(name: str, config: str | None) -> Any:
        assert hub["datasets"].config.HF_HUB_OFFLINE  # or else it would ask
        if name != "kept":
            raise ConnectionError
        return {"train": train}

    network = Network()
    train = split(hub, {"text": ["a", "b", "c"], "label": ["x", "y", "x"]})
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub, "get_session", lambda: network)
    monkeypatch.setattr(hub["datasets"].config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub["datasets"], "load_dataset", load_dataset)
    with pytest.raises(DataError, match=r"^imdv is no file or folder here, and the hub cannot be reached: check the n"):
        load_data("imdv")
    assert network.asked == 1
    assert len(load_data("kept").train) == 2
    assert not hub["datasets"].config.HF_HUB_OFFLINE


def test_row_hashes() -> None:
    hashes = row_hashes(["a", ("a", "b"), "ü"])
    assert hashes.dtype == np.uint64
    for value, text in zip(hashes, ["a", "a\x1fb", "ü"], strict=True):
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=8).digest()
        assert int(value) == int.from_bytes(digest, "little")
    assert row_hashes([]).shape == (0,)


def test_a_row_is_known_again_though_written_otherwise() -> None:
    texts: list[Any] = ["a caf\u00e9 in town", ("a gem", "dull and cold")]
    for other in (
        ["a caf\u00e9 in town ", ("a gem ", "\tdull and cold")],
        [" a  caf\u00e9\nin\u00a0town", ("a\u2003gem", "dull  and\r\ncold\n")],
        ["a cafe\u0301 in town", ("a gem", "dull and cold")],
        ["A CAF\u00c9 in Town", ("a Gem", "DULL and cold")],
        ["a caf\u00e9\u200b in to\u200bwn", ("a gem\ufeff", "dull and cold")],
    ):
        assert np.array_equal(row_hashes(other), row_hashes(texts))
    assert len(set(row_hashes(["a b", "ab", "a c", "a b.", ("a", "b"), ("a b", ""), ("", "a b")]).tolist())) == 7


@pytest.mark.parametrize(
    ("name", "train", "dev", "outputs", "kind"),
    [
        ("sst2", 67_349, 872, 2, "single"),
        ("mrpc", 3_668, 408, 2, "single"),
        ("stsb", 5_749, 1_500, 1, "regression"),
        ("mnli10k", 9_888, 6_238, 3, "single"),
        ("banking77", 10_003, 3_080, 77, "single"),
    ],
)
def test_real_data(name: str, train: int, dev: int, outputs: int, kind: str) -> None:
    folder = os.environ.get("OFFRAMP_DATA")
    if folder is None or not (Path(folder) / name).is_dir():
        pytest.skip("needs the data folder: set OFFRAMP_DATA")
    data = load_data(str(Path(folder) / name))
    assert (len(data.train), len(data.dev), len(data.id2label)) == (train, dev, outputs)
    assert data.problem_type.startswith(kind)
