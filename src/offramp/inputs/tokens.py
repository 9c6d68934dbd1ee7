"""Texts to token ids through the ``tokenizers`` library alone, exactly as ``AutoTokenizer`` would give them.

A served model needs no transformers. ``tokenizer.json`` holds the whole pipeline, but also whatever padding and
truncation happened to be in force when it was saved, so both are set anew here.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers

from offramp.errors import DataError, KnobError, RunError

__all__ = ["Encoded", "Text", "Tokenizer"]

Text = str | tuple[str, str]
"""A text, or a pair of texts that the model reads together."""


@dataclass(frozen=True)
class Encoded:
    """One text as the model reads it."""

    tokens: npt.NDArray[np.int32]
    """[L] token ids, special tokens included, no padding."""
    token_types: npt.NDArray[np.int32] | None
    """[L] 0 for the first text and 1 for the second; None where the backbone knows no token types."""
    truncated: bool
    """The text did not fit and was cut."""

    def __len__(self) -> int:
        return len(self.tokens)


class Tokenizer:
    """Turns texts into token ids. Safe to use from several threads.

    Attributes:
        max_length: most tokens a text may have, special tokens included.
        pad_token: id that stands for padding. Runtimes go by lengths, so it only has to be a valid id.
        token_types: whether the backbone has more than one token type, and ``Encoded.token_types`` is filled.
    """

    def __init__(
        self, backend: tokenizers.Tokenizer, *, max_length: int, pad_token: int, token_types: bool, side: str = "right"
    ) -> None:
        """Take over ``backend``: its padding and truncation are changed.

        Raises:
            KnobError: ``max_length`` leaves no room for text (``tokenizers`` would quietly not truncate at all).
        """
        special = backend.num_special_tokens_to_add(True)
        if max_length <= special:
            raise KnobError(f"max_length must be more than the {special} special tokens of a pair, not {max_length}")
        backend.no_padding()
        backend.enable_truncation(max_length, strategy="longest_first", direction=side)
        self._backend = backend
        self._may_be_empty = backend.num_special_tokens_to_add(False) == 0
        self.max_length = max_length
        self.pad_token = pad_token
        self.token_types = token_types

    @classmethod
    def from_folder(cls, folder: Path, *, max_length: int) -> Tokenizer:
        """The tokenizer of a run or model folder.

        Reads ``tokenizer.json``; from ``tokenizer_config.json``, ``special_tokens_map.json`` and ``config.json``
        the padding token, the side to truncate, and whether the backbone has token types (``type_vocab_size`` > 1).

        Raises:
            RunError: ``tokenizer.json`` is absent, or a file is damaged.
            KnobError: ``max_length`` leaves no room for text.
        """
        path = folder / "tokenizer.json"
        if not path.is_file():
            raise RunError(
                f"{folder} has no tokenizer.json: save the model's fast tokenizer there, "
                "AutoTokenizer.from_pretrained(MODEL).save_pretrained(FOLDER)"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception for whatever it cannot read
            raise RunError(f"{path} cannot be read ({error}): the folder is damaged, copy it again") from error
        settings = _read_json(folder / "tokenizer_config.json")
        model = _read_json(folder / "config.json")
        side = settings.get("truncation_side") or (backend.truncation or {}).get("direction") or "right"
        named = settings.get("pad_token") or _read_json(folder / "special_tokens_map.json").get("pad_token")
        return cls(
            backend,
            max_length=max_length,
            pad_token=_pad_token(backend, named, model.get("pad_token_id")),
            token_types=_has_token_types(settings, model),
            side=side,
        )

    def encode(self, texts: Sequence[Text], where: Callable[[int], str] | None = None) -> list[Encoded]:
        """Token ids of texts and pairs, which may be mixed; pairs are cut at the longer text first.

        Args:
            texts: what to encode.
            where: for messages, what the text at a place is called, from 0; None: ``text 1`` and so on.

        Raises:
            DataError: a text is not a string, or holds half of a surrogate pair, or has no token at all.
        """
        where = where or _numbered
        try:
            encodings = self._backend.encode_batch(list(texts))
        except TypeError:
            raise DataError(_culprit(texts, where)) from None
        encoded = [self._encoded(encoding) for encoding in encodings]
        if (
            self._may_be_empty
            and (empty := next((i for i, one in enumerate(encoded) if not len(one)), None)) is not None
        ):
            raise DataError(
                f"{where(empty)} has no tokens: it is empty, or blank to this tokenizer, which adds no special tokens; "
                "leave it out"
            )
        return encoded

    def check(self, text: Text, where: str) -> None:
        """Raise DataError where a text has no token at all; for texts that come one by one.

        Costs nothing where the tokenizer adds special tokens: there every text has some.
        """
        if self._may_be_empty:
            self.encode([text], lambda _: where)

    def _encoded(self, encoding: tokenizers.Encoding) -> Encoded:
        tokens = np.asarray(encoding.ids, dtype=np.int32)
        types = np.asarray(encoding.type_ids, dtype=np.int32) if self.token_types else None
        # The overflow of a long text is many objects: ask only where there can be any.
        return Encoded(tokens, types, len(tokens) >= self.max_length and len(encoding.overflowing) > 0)


def _numbered(place: int) -> str:
    return f"text {place + 1}"


def _culprit(texts: Sequence[object], where: Callable[[int], str]) -> str:
    """Which of the texts the library refused, in words."""
    for place, text in enumerate(texts):
        parts = text if isinstance(text, tuple) and len(text) == 2 else (text,)
        for part in parts:
            if not isinstance(part, str):
                return f"{where(place)} is {type(part).__name__}, not a string or a pair of strings: pass str"
            if not part.isascii() and any("\ud800" <= letter <= "\udfff" for letter in part):
                return f"{where(place)} holds half of a surrogate pair, which is no character: clean the text"
    return "a text is neither a string nor a pair of strings: pass str, or a tuple of two"


def _read_json(path: Path) -> dict[str, Any]:
    """An object from a JSON file; empty where the file is absent."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} cannot be read ({error}): the folder is damaged, copy it again") from error
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no JSON object: the folder is damaged, copy it again")
    return content


def _pad_token(backend: tokenizers.Tokenizer, named: Any, number: int | None) -> int:
    """Id of the padding token: by its name, else the model's number, else what tokenizer.json pads with, else 0."""
    content = named.get("content") if isinstance(named, dict) else named
    by_name = backend.token_to_id(content) if isinstance(content, str) else None
    saved = (backend.padding or {}).get("pad_id")
    return next((int(found) for found in (by_name, number, saved) if found is not None), 0)


def _has_token_types(settings: dict[str, Any], model: dict[str, Any]) -> bool:
    """The backbone decides (RoBERTa has one type, DistilBERT none); without its config, the tokenizer's own word."""
    if model:
        return int(model.get("type_vocab_size") or 0) > 1
    return "token_type_ids" in (settings.get("model_input_names") or ())
