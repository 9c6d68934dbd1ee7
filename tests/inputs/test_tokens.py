from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import models, normalizers, pre_tokenizers, processors

from offramp.errors import DataError, KnobError, RunError
from offramp.inputs.tokens import Text, Tokenizer

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "gem", "of", "film", "##s", "dull", ",", "neither", "here"]
TEXTS: list[Text] = [
    "a gem of films",
    "",
    "dull , neither here",
    "an unheard-of [SEP] word",
    "a gem of film " * 40,
    "ünïcödé 🎬 日本",
]
PAIRS: list[Text] = [
    ("a gem", "dull film"),
    ("", ""),
    ("a", ""),
    ("a gem of film " * 20, "dull"),
    ("dull", "a gem of film " * 20),
    ("a gem of film " * 20, "dull film " * 20),
]


@pytest.fixture
def save(tmp_path: Path) -> Callable[..., Path]:
    """Saves a small WordPiece tokenizer as transformers does."""
    transformers = pytest.importorskip("transformers")

    def save(type_vocab_size: int | None = 2, **settings: Any) -> Path:
        backend = tokenizers.Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
        backend.normalizer = normalizers.BertNormalizer()
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        backend.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        # What an earlier user left behind; must be undone.
        backend.enable_padding(length=50, pad_id=0, pad_token="[PAD]")
        backend.enable_truncation(5)
        names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "pad", "cls", "sep", "mask")}
        fast = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, **names, **settings)
        fast.save_pretrained(tmp_path)
        config = {"model_type": "bert", "type_vocab_size": type_vocab_size}
        (tmp_path / "config.json").write_text(json.dumps(config))
        return tmp_path

    return save


def assert_like_auto(folder: Path, texts: list[Text], max_length: int) -> None:
    transformers = pytest.importorskip("transformers")
    auto = transformers.AutoTokenizer.from_pretrained(folder)
    theirs = auto(texts, truncation=True, max_length=max_length, padding=False, return_token_type_ids=True)
    whole = auto(texts, truncation=False, padding=False)
    ours = Tokenizer.from_folder(folder, max_length=max_length).encode(texts)
    assert len(ours) == len(texts)
    for i, encoded in enumerate(ours):
        assert encoded.tokens.tolist() == theirs["input_ids"][i]
        assert encoded.token_types is not None
        assert encoded.token_types.tolist() == theirs["token_type_ids"][i]
        assert encoded.truncated == (len(whole["input_ids"][i]) > max_length)
        assert encoded.tokens.dtype == np.int32


@pytest.mark.parametrize("max_length", [4, 7, 16, 512])
def test_gives_what_auto_tokenizer_gives(save: Callable[..., Path], max_length: int) -> None:
    folder = save()
    assert_like_auto(folder, TEXTS, max_length)
    assert_like_auto(folder, PAIRS, max_length)


def test_truncates_on_the_side_that_the_tokenizer_says(save: Callable[..., Path]) -> None:
    folder = save(truncation_side="left")
    assert_like_auto(folder, TEXTS, 6)
    tokens = Tokenizer.from_folder(folder, max_length=4).encode(["gem gem gem a film"])[0].tokens
    assert tokens.tolist() == [2, WORDS.index("a"), WORDS.index("film"), 3]


def test_gives_what_auto_tokenizer_gives_on_a_real_encoder() -> None:
    home = Path(os.environ.get("HOME", "")) / ".cache" / "offramp-weights" / "minilm"
    if not (home / "tokenizer.json").is_file():
        pytest.skip("needs the minilm encoder in ~/.cache/offramp-weights")
    texts = [*TEXTS, "Unflinchingly bleak & desperate…", "x" * 300, "naïve café — déjà vu"]
    assert_like_auto(home, texts, 16)
    assert_like_auto(home, PAIRS, 16)
    assert_like_auto(home, PAIRS, 512)
    assert Tokenizer.from_folder(home, max_length=512).pad_token == 0


def test_empty_and_endless_texts(save: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_folder(save(), max_length=64)
    empty, endless = tokenizer.encode(["", "a gem of film " * 7200])
    assert empty.tokens.tolist() == [2, 3]
    assert not empty.truncated
    assert len(endless) == 64
    assert endless.truncated
    assert tokenizer.encode([]) == []


def test_exactly_full_is_not_truncated(save: Callable[..., Path]) -> None:
    encoded = Tokenizer.from_folder(save(), max_length=6).encode(["a gem of film", "a gem of film a"])
    assert [(len(text), text.truncated) for text in encoded] == [(6, False), (6, True)]


@pytest.mark.parametrize(("size", "expected"), [(2, True), (1, False), (0, False), (None, False)])
def test_the_backbone_decides_about_token_types(save: Callable[..., Path], size: int | None, expected: bool) -> None:
    tokenizer = Tokenizer.from_folder(save(size), max_length=8)
    assert tokenizer.token_types is expected
    assert (tokenizer.encode(["a"])[0].token_types is not None) is expected


def test_pad_token_by_name_then_number_then_what_was_saved(save: Callable[..., Path]) -> None:
    folder = save()
    assert Tokenizer.from_folder(folder, max_length=8).pad_token == 0
    settings_file = folder / "tokenizer_config.json"
    settings = json.loads(settings_file.read_text())
    settings["pad_token"] = {"content": "[MASK]"}
    settings_file.write_text(json.dumps(settings))
    assert Tokenizer.from_folder(folder, max_length=8).pad_token == 4
    settings_file.unlink()
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "config.json").write_text('{"pad_token_id": 1}')
    assert Tokenizer.from_folder(folder, max_length=8).pad_token == 1


def test_folders_and_settings_that_cannot_be_used(save: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no tokenizer\.json"):
        Tokenizer.from_folder(tmp_path / "absent", max_length=8)
    folder = save()
    with pytest.raises(KnobError, match="3 special tokens"):
        Tokenizer.from_folder(folder, max_length=3)
    (folder / "config.json").write_text("{")
    with pytest.raises(RunError, match=r"config\.json cannot be read"):
        Tokenizer.from_folder(folder, max_length=8)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(RunError, match=r"tokenizer\.json cannot be read"):
        Tokenizer.from_folder(folder, max_length=8)


def test_texts_that_are_none(save: Callable[..., Path]) -> None:
    tokenizer = Tokenizer.from_folder(save(), max_length=8)
    with pytest.raises(DataError, match="text 2 is int"):
        tokenizer.encode(["a", 3])  # type: ignore[list-item]
    with pytest.raises(DataError, match="text 1 holds half of a surrogate pair"):
        tokenizer.encode(["\ud83d"])
    with pytest.raises(DataError, match="text 1 is NoneType"):
        tokenizer.encode([("a", None)])  # type: ignore[list-item]
