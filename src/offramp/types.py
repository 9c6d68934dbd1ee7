"""The nouns every part shares: small frozen dataclasses over arrays of any library.

An *array* is a numpy or torch array; code that touches one takes its functions from
``array_api_compat.array_namespace`` so that the same line serves both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = [
    "PROBLEM_TYPES",
    "Array",
    "Batch",
    "Decision",
    "ExitOutput",
    "Knobs",
    "Lazily",
    "Pooling",
    "Prediction",
    "ProblemType",
    "Stage",
    "State",
]

Array = Any
"""A numpy or torch array (array API)."""

ProblemType = Literal["single_label_classification", "multi_label_classification", "regression"]
PROBLEM_TYPES: tuple[ProblemType, ...] = (
    "single_label_classification",
    "multi_label_classification",
    "regression",
)

Pooling = Literal["cls", "mean", "attention", "backbone"]
"""What exits read of a text: the first token's vector, the mean over unpadded tokens, a mean whose weights every exit
learns, or what the backbone's own head reads (its pooler or first layer)."""

State = Mapping[str, Array]
"""What a criterion remembers of each unit: name -> array whose first axis is the unit."""

Knobs = Mapping[str, Array]
"""What a request may set: name -> array [B], one value per unit."""


@dataclass(frozen=True)
class Batch:
    """Rows on their way through the encoder. First axis: the row.

    Masks, position biases and rotary tables are not here: a runtime derives them from
    ``lengths`` inside each stage, so nothing of shape [B, 1, L, L] is ever compacted.
    """

    ids: Array
    """[B] int64: which unit of the stream each row is."""
    tokens: Array
    """[B, L] int64 token ids, padded on the right."""
    lengths: Array
    """[B] int64: tokens in each row that are not padding."""
    token_types: Array | None = None
    """[B, L] int64 segment ids, for backbones that use them."""


@dataclass(frozen=True)
class Stage:
    """The run of layers up to the next exit, and that exit."""

    index: int
    """Position among the stages, from 0."""
    first_layer: int
    """First layer of the run, from 0."""
    last_layer: int
    """One past the last layer of the run."""
    layers: int
    """Layers executed in all when a unit leaves here: the exit's cumulative cost."""
    is_last: bool = False
    """No stage follows: whoever is still here leaves."""
    starts_from: Literal["hidden", "inputs"] = "hidden"
    """Whether it continues the hidden states before it, or begins again from the inputs."""


class Lazily(Mapping[str, Array]):
    """Named arrays, each made when it is first asked for: what no criterion reads costs nothing."""

    def __init__(self, makers: Mapping[str, Callable[[], Array]]) -> None:
        self._makers, self._made = makers, dict[str, Array]()

    def __getitem__(self, name: str) -> Array:
        if name not in self._made:
            self._made[name] = self._makers[name]()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._makers)

    def __len__(self) -> int:
        return len(self._makers)


@dataclass(frozen=True)
class ExitOutput:
    """What one exit says about each unit."""

    logits: Array
    """[B, C]: classes, labels, or one number (regression: C = 1)."""
    extras: Mapping[str, Array] = field(default_factory=dict)
    """What the head adds, first axis the unit: ``distances`` [B, C] to the class prototypes, a gate [B], ..."""
    layout: Array | None = None
    """unit -> (row, position) where a unit is not a whole row. None: unit = row."""
    lengths: Array | None = None
    """[B] int64: tokens of each unit's text that are not padding. Runtimes leave it out; engines and traces set it."""


@dataclass(frozen=True)
class Decision:
    """Who leaves at an exit, and with which answer."""

    leave: Array
    """[B] bool."""
    answer: Array
    """[B, C]: logits, or what stands for them, of units that leave here."""


@dataclass(frozen=True)
class Prediction:
    """The answer to one text, and where it left."""

    label: str | list[str] | float
    """A class name, the names of all labels that apply (multi-label), or a number (regression)."""
    score: float | None
    """Probability of the label; multi-label: of the least sure label that applies; regression: None."""
    exit_layer: int
    """Layer after which the rule fired (1 = the first)."""
    layers_executed: int
    """Layers computed for this text; more than ``exit_layer`` where a decision arrives late."""
    truncated: bool = False
    """The text was longer than the model reads, and was cut."""
