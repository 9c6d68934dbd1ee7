"""Early-exit classifiers around Hugging Face encoders.

The model stays what it was - its class, its parameters' names, its config - and gains one submodule, ``offramp``,
that holds the exits. So ``save_pretrained`` writes one safetensors file in which the exits' tensors are named
``offramp.*``, and plain ``AutoModelForSequenceClassification.from_pretrained`` loads the full-depth model from it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, ClassVar

import torch
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedModel
from transformers.utils import ModelOutput

from offramp.errors import KnobError, OfframpError, RunError, UnsupportedError
from offramp.model.backbone import Cut, adapter_of, cut, lengths_to_mask
from offramp.model.exits import Exits, ExitSettings, make_stages
from offramp.model.heads import HeadOutput, Reader, Surroundings, head_class
from offramp.model.pooling import pool_tokens
from offramp.objectives import Moment, Objective, make_objective
from offramp.types import ProblemType, Stage

__all__ = [
    "EarlyExitMixin",
    "EarlyExitOutput",
    "add_exits",
    "load_early_exit",
    "load_finetuned",
    "load_plain",
    "load_unfinished",
]

SECTION = "offramp"
"""Name of our section in config.json, and of our submodule."""


@dataclass
class EarlyExitOutput(ModelOutput):  # type: ignore[misc]
    """What ``forward`` returns.

    Attributes:
        loss: scalar, where labels were given.
        logits: [B, C] of the last exit: the full-depth answer.
        exit_logits: [B, E, C] of every exit, shallow to deep.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    exit_logits: Tensor | None = None


class EarlyExitMixin:
    """What ``add_exits`` gives a model. ``forward`` runs every exit; early leaving is the engine's work."""

    offramp: Exits
    config: Any
    training: bool
    plain_class: ClassVar[type[PreTrainedModel]]
    """What it was before it had exits, and what its members are."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        self._build(ExitSettings.from_json(getattr(config, SECTION)))

    def _build(self, settings: ExitSettings) -> None:
        parts = cut(self)
        # Never None: plain transformers guesses it anew at every loss where it is.
        self.problem_type: ProblemType = self.config.problem_type or "single_label_classification"
        self.settings = settings
        self.stages: tuple[Stage, ...] = make_stages(parts.num_layers, settings.layers, settings.members)
        self._own_pooler = head_class(settings.head).own_pooler  # once: it looks for the head's file
        uses_pooler = settings.pooling == "backbone" and not self._own_pooler
        around = Surroundings(
            hidden_size=parts.hidden_size,
            pooled_size=parts.pooled_size if uses_pooler else parts.hidden_size,
            num_outputs=self.config.num_labels,
            problem_type=self.problem_type,
            dropout=classifier_dropout(self.config),
        )
        members = [self._smaller(layers) for layers in settings.members]
        self.offramp = Exits(settings, self.stages, around, None if members else parts.exit_norm(), members)
        self._keep(make_objective(settings.objective, settings.objective_settings, num_exits=len(self.stages)))

    def _smaller(self, layers: int) -> PreTrainedModel:
        """An untrained plain model of the same kind with so many layers."""
        config = copy.deepcopy(self.config)
        group = cut(self).num_layers // config.num_hidden_layers  # ALBERT's layers may come several at a time
        if layers % group:
            raise KnobError(f"this model's layers come in groups of {group}: a smaller one cannot have {layers}")
        config.num_hidden_layers = layers // group
        return self.plain_class(config)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy: the class is made here and stands in no module under its name, where pickle would look."""
        return _unbuilt, (self.plain_class,), self.__dict__

    def cuts(self) -> tuple[Cut, ...]:
        """What runs each stage: this model, or first the smaller ones."""
        own = cut(self)
        if not self.offramp.members:
            return (own,) * len(self.stages)
        return (*(cut(member) for member in self.offramp.members), own)

    @property
    def objective(self) -> Objective:
        """What training minimises."""
        learned = self.offramp.objective
        return self._fixed if learned is None else learned  # type: ignore[return-value]

    def _keep(self, objective: Objective) -> None:
        """One with parameters stands among the exits, so that it is trained and saved with them."""
        self.offramp.objective = objective if isinstance(objective, nn.Module) else None
        self._fixed = None if isinstance(objective, nn.Module) else objective
        self.offramp.step, self.offramp.progress = 0, 1.0

    def train(self, mode: bool = True) -> Any:
        """As in torch; but a frozen encoder stays in eval mode: exits learn from what they will be given."""
        super().train(mode)  # type: ignore[misc]
        if mode and not any(p.requires_grad for _, p in parameters_of(self, "backbone")):  # type: ignore[arg-type]
            for name, child in self.named_children():  # type: ignore[attr-defined]
                child.train(name == SECTION)
            if self.offramp.last is not None:
                self.offramp.last.eval()
        return self

    def minimise(self, objective: str, settings: Mapping[str, Any]) -> None:
        """Train for another objective from now on; a save remembers it.

        Raises:
            KnobError: no such objective, or no such setting.
        """
        self._keep(make_objective(objective, settings, num_exits=len(self.stages)))
        self.settings = replace(self.settings, objective=objective, objective_settings=settings)
        setattr(self.config, SECTION, self.settings.to_json())

    def pool(self, parts: Cut, hidden: Tensor, lengths: Tensor) -> Tensor:
        """One vector a text, as the settings say: [B, L, H] -> [B, pooled size].

        Raises:
            UnsupportedError: pooling is ``attention``, which every head does for itself.
        """
        pooling = self.settings.pooling
        if pooling == "attention":
            raise UnsupportedError("every exit weighs the tokens by itself: there is no one vector a text")
        if pooling != "backbone":
            return pool_tokens(hidden, lengths, pooling)
        if self._own_pooler:
            return pool_tokens(hidden, lengths, "cls")
        return parts.pool(hidden, lengths)

    def run_stage(self, parts: Cut, stage: Stage, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The layers of one stage: [B, L, H] -> [B, L, H]."""
        context = parts.context(hidden, lengths)
        for index in range(stage.first_layer, stage.last_layer):
            hidden = parts.layer(index, hidden, context)
        return hidden

    def run_exit(
        self, parts: Cut, stage: Stage, hidden: Tensor, lengths: Tensor, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        """What the exit after a stage says."""
        if stage.is_last and self.offramp.last is None:
            return HeadOutput(parts.head(hidden, lengths)), memory
        # The last layer's hidden states are normed by the backbone itself.
        hidden = hidden if stage.is_last else self.offramp.normalise(stage.index, hidden)
        return self._ask(parts, stage, hidden, lengths, memory)

    def _ask(
        self, parts: Cut, stage: Stage, hidden: Tensor, lengths: Tensor, memory: Mapping[str, Tensor]
    ) -> tuple[HeadOutput, Mapping[str, Tensor]]:
        """What a head of ours says; hidden states have passed its norm."""
        head = self.offramp.head(stage.index) if not stage.is_last else self.offramp.last
        assert head is not None
        own = partial(self._member_head, parts) if self.offramp.members else parts.head
        reader = Reader(pool=head.attention or partial(self.pool, parts), own=own, common=self.offramp.common)
        return head(hidden, lengths, reader, memory)  # type: ignore[no-any-return]

    def _member_head(self, parts: Cut, hidden: Tensor, lengths: Tensor) -> Tensor:
        """A smaller model's own head, whole: [B, L, H] -> [B, C]. It reads what the settings pool, as one token.

        A few layers seldom gather a text into its first token where a sentence encoder was not pretrained to.
        """
        pooling = self.settings.pooling
        if pooling in ("cls", "mean"):
            hidden = pool_tokens(hidden, lengths, pooling)[:, None]
            lengths = torch.ones_like(lengths)
        return parts.head(hidden, lengths)

    # No **kwargs: with them Trainer would hand over num_items_in_batch and stop dividing the loss by accumulation.
    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        hardness: Tensor | None = None,
        features: Tensor | None = None,
        last_logits: Tensor | None = None,
    ) -> EarlyExitOutput:
        """Run every layer and every exit.

        Args:
            input_ids: [B, L], padded on the right. None: see ``features``.
            attention_mask: [B, L] ones and zeros; None: no padding.
            token_type_ids: [B, L], for backbones that use them.
            labels: [B] class ids, [B, C] zeros and ones, or [B] numbers; gives the loss.
            hardness: [B], for objectives that need it.
            features: instead of ``input_ids``, and with ``last_logits``: what ``encode`` gave for these rows earlier.
                The layers do not run; ``attention_mask`` [B, L] is that of the features.
            last_logits: [B, C].

        Raises:
            UnsupportedError: padding elsewhere than on the right, or a row that is nothing else.
        """
        if features is not None:
            assert last_logits is not None
            outputs = self._from_features(features, attention_mask, last_logits)
        else:
            assert input_ids is not None
            outputs = self._from_tokens(input_ids, attention_mask, token_type_ids)
        return EarlyExitOutput(
            loss=None if labels is None else self._loss(outputs, labels, hardness),
            logits=outputs[-1].logits,
            exit_logits=torch.stack([output.logits for output in outputs], dim=1),
        )

    def _from_tokens(
        self, input_ids: Tensor, attention_mask: Tensor | None, token_type_ids: Tensor | None
    ) -> list[HeadOutput]:
        lengths = _lengths(input_ids, attention_mask)
        cuts = self.cuts()
        hidden = cuts[0].embed(input_ids, lengths, token_type_ids)
        outputs: list[HeadOutput] = []
        memory: Mapping[str, Tensor] = {}
        for stage, parts in zip(self.stages, cuts, strict=True):
            if stage.starts_from == "inputs":
                hidden = parts.embed(input_ids, lengths, token_type_ids)
            hidden = self.run_stage(parts, stage, hidden, lengths)
            output, memory = self.run_exit(parts, stage, hidden, lengths, memory)
            outputs.append(output)
        return outputs

    def _from_features(self, features: Tensor, attention_mask: Tensor | None, last_logits: Tensor) -> list[HeadOutput]:
        lengths = _lengths(features[:, 0, :, 0], attention_mask)
        parts = cut(self)
        outputs: list[HeadOutput] = []
        memory: Mapping[str, Tensor] = {}
        for stage in self.stages[:-1]:
            hidden = self.offramp.rescale(stage.index, features[:, stage.index])
            output, memory = self._ask(parts, stage, hidden, lengths, memory)
            outputs.append(output)
        return [*outputs, HeadOutput(last_logits)]

    def encode(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        *,
        tokens: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """What heads read of rows as long as no weight but theirs changes: ``forward`` takes it as ``features``.

        Of a pre-norm backbone, before the weights of the exits' norms, which train with the heads.

        Args:
            input_ids: [B, L], padded on the right.
            attention_mask: [B, L] ones and zeros; None: no padding.
            token_type_ids: [B, L], for backbones that use them.
            tokens: every token's vector and not one vector a text: for heads that read the tokens themselves.

        Returns:
            Features of every exit, the last one's too, which ``forward`` does not ask for: [B, E, L, H], L = 1
            without ``tokens``: a text whose one token is its summary. And the last exit's logits [B, C].

        Raises:
            UnsupportedError: as ``forward``; or the model has smaller complete models, whose layers are trained.
        """
        if self.offramp.members:
            raise UnsupportedError("smaller complete models read the inputs: there are no features to keep of them")
        lengths = _lengths(input_ids, attention_mask)
        parts = cut(self)
        hidden = parts.embed(input_ids, lengths, token_type_ids)
        features = []
        for stage in self.stages:
            hidden = self.run_stage(parts, stage, hidden, lengths)
            read = hidden if stage.is_last else self.offramp.standardise(stage.index, hidden)
            features.append(read if tokens else self.summary(parts, read, lengths)[:, None])
        output, _ = self.run_exit(parts, self.stages[-1], hidden, lengths, {})
        return torch.stack(features, dim=1), output.logits

    def summary(self, parts: Cut, hidden: Tensor, lengths: Tensor) -> Tensor:
        """All that ``pool`` reads: [B, L, H] -> [B, H]. As a text of one token it is pooled to the same."""
        if self.settings.pooling == "backbone" and not self._own_pooler:
            return parts.summary(hidden, lengths)
        return self.pool(parts, hidden, lengths)

    def _loss(self, outputs: Sequence[HeadOutput], labels: Tensor, hardness: Tensor | None) -> Tensor:
        moment = Moment(
            training=self.training,
            step=self.offramp.step,
            progress=self.offramp.progress,
            hardness=hardness,
            heads=[p for p in self.offramp.heads.parameters() if p.requires_grad],
        )
        loss = self.objective(outputs, [stage.layers for stage in self.stages], labels, self.problem_type, moment)
        if self.training:
            self.offramp.learn(outputs, labels)
        return loss


def _lengths(input_ids: Tensor, attention_mask: Tensor | None) -> Tensor:
    if attention_mask is None:
        return torch.full((input_ids.shape[0],), input_ids.shape[1], device=input_ids.device)
    lengths = attention_mask.sum(dim=1)
    on_the_right = (lengths_to_mask(lengths, attention_mask.shape[1]) == attention_mask.bool()).all()
    if not bool(on_the_right & (lengths > 0).all()):
        raise UnsupportedError("texts must be padded on the right: set tokenizer.padding_side = 'right'")
    return lengths


def classifier_dropout(config: Any) -> float:
    """The dropout a family puts before its classifier; the names differ."""
    for name in ("classifier_dropout", "classifier_dropout_prob", "seq_classif_dropout", "cls_dropout"):
        value = getattr(config, name, None)
        if value is not None:
            return float(value)
    return float(getattr(config, "hidden_dropout_prob", 0.1))


@cache
def early_exit_class(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class with exits; it keeps the name, so that config.json's ``architectures`` stays loadable by anyone."""
    members = {
        "__module__": model_class.__module__,
        "plain_class": model_class,
        # Whatever dtype is loaded: distances between near points have no digits left in bfloat16.
        "_keep_in_fp32_modules_strict": [*(model_class._keep_in_fp32_modules_strict or ()), "prototypes.means"],
    }
    return type(model_class.__name__, (EarlyExitMixin, model_class), members)


def _unbuilt(model_class: Any) -> Any:
    """What pickle fills with a model's contents."""
    made: Any = early_exit_class(model_class)
    return made.__new__(made)


_UNREADABLE = (OSError, ValueError, RuntimeError, KeyError, UnpicklingError, SafetensorError)
"""What transformers raises where a checkpoint is absent, damaged, or holds more than tensors."""


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def load_plain(name: str, **config: Any) -> PreTrainedModel:
    """A plain ``AutoModelForSequenceClassification``, its head fresh where the checkpoint has none.

    Weights come from safetensors, or are unpickled with ``weights_only=True``: nothing in a checkpoint is executed.

    Raises:
        UnsupportedError: the checkpoint is no encoder that classifies.
        RunError: there is no such checkpoint, or it cannot be read.
    """
    return load_unfinished(name, **config)[0]


def load_unfinished(name: str, **config: Any) -> tuple[PreTrainedModel, set[str]]:
    """As ``load_plain``, and the names of the weights that the checkpoint does not have: they were made by chance.

    Raises:
        UnsupportedError: as ``load_plain``.
        RunError: likewise.
    """
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, dtype=torch.float32, output_loading_info=True, **config
        )
        return model, _made_up(info)
    except _UNREADABLE as error:
        reason = _first_line(error)
        if "Unrecognized configuration class" in reason:
            raise UnsupportedError(f"{name} is no text classifier: transformers has no head for it") from error
        raise RunError(f"cannot load a model from {name}: {reason}") from error


def load_finetuned(name: str) -> PreTrainedModel:
    """A classifier as somebody trained it: nothing of it may be missing, and nothing is made up.

    A run with no exit but the last, as recipe ``plain`` trains it, is one: the run's section stays in its config.

    Raises:
        UnsupportedError: no encoder that classifies, one that was never trained to, or one whose head is its own kind.
        RunError: there is no such checkpoint, it cannot be read, or only by running code in it.
    """
    try:
        config = AutoConfig.from_pretrained(name)
    except _UNREADABLE as error:
        raise RunError(f"cannot load a model from {name}: {_first_line(error)}") from error
    adapter_of(config)
    saved_as = (getattr(config, "architectures", None) or [""])[0]
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            name, config=config, dtype=torch.float32, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except UnpicklingError as error:
        raise RunError(
            f"the weights of {name} are a pickle that holds more than tensors, and loading it would run what it says: "
            "save the model with save_pretrained, as safetensors"
        ) from error
    except _UNREADABLE as error:
        raise RunError(f"cannot load a model from {name}: {_first_line(error)}") from error
    _check_complete(name, saved_as, type(model).__name__, info)
    _check_without_exits(name, model)
    plain: PreTrainedModel = model.eval()
    return plain


def _check_without_exits(name: str, model: PreTrainedModel) -> None:
    """Complain of a run whose answers are not the plain model's alone."""
    section = getattr(model.config, SECTION, None)
    if section is None:
        return
    try:
        settings = ExitSettings.from_json(section)
        stages = make_stages(cut(model).num_layers, settings.layers, settings.members)
    except (TypeError, ValueError, KnobError) as error:
        raise RunError(f"{name} is damaged, its config.json sets up no exits: {_first_line(error)}") from error
    if len(stages) > 1:
        raise UnsupportedError(f"{name} has exits already: it is an offramp run, train or calibrate it")
    if settings.last_exit != "model":
        raise UnsupportedError(
            f"{name} answers with a head of offramp's own and not with the model's, which is untrained: train it again "
            "with --last_exit model"
        )


def _made_up(info: Mapping[str, Any]) -> set[str]:
    """Weights that a checkpoint has not, or in another shape; ``info`` is what transformers says of the loading."""
    # Mismatched: (name, shape there, shape here), or the name alone.
    return {key if isinstance(key, str) else key[0] for key in info["mismatched_keys"]} | set(info["missing_keys"])


def _check_complete(name: str, saved_as: str, kind: str, info: Mapping[str, Any]) -> None:
    """Complain of a classifier that is not whole.

    Args:
        name: of the checkpoint.
        saved_as: the class it says it is; empty where it does not say.
        kind: the class it was loaded as.
        info: what transformers says of the loading.
    """
    wrong = _made_up(info)
    if saved_as.endswith("ForSequenceClassification") or not saved_as:
        if wrong and (others := sorted(info["unexpected_keys"])):
            raise UnsupportedError(
                f"the head of {name} cannot be told from its backbone: it has {others[0]} where {kind} has "
                f"{min(wrong)}; save it as {kind}"
            )
        if wrong and saved_as:
            raise RunError(f"{name} is damaged: its weights lack {min(wrong)}")
    if wrong or (saved_as and not saved_as.endswith("ForSequenceClassification")):
        what = f"it was saved as {saved_as}" if saved_as else f"it has no {min(wrong)}"
        raise UnsupportedError(
            f"{name} was never fine-tuned to classify texts ({what}): use `offramp train`, which does that"
        )


def add_exits(model: PreTrainedModel, settings: ExitSettings) -> PreTrainedModel:
    """Give a plain classifier exits, in place; its own weights stay as they are.

    Args:
        model: an ``AutoModelForSequenceClassification`` of a supported family.
        settings: heads, where they stand, pooling, objective.

    Returns:
        The same object, now of the early-exit class.

    Raises:
        UnsupportedError: a family that cannot be cut into layers, or a model that has exits already.
        KnobError: settings that make no sense for it.
    """
    plain: Any = type(model)
    if issubclass(plain, EarlyExitMixin):
        raise UnsupportedError("the model has exits already: load it again without them (load_plain)")
    model.__class__ = early_exit_class(plain)
    try:
        model._build(settings)
    except OfframpError:
        model.__class__ = plain  # it stays as it was
        raise
    setattr(model.config, SECTION, settings.to_json())
    parts = cut(model)
    pretrained = model.state_dict()
    for member in model.offramp.members:  # the first layers of the same checkpoint, and its embedding and head
        member.load_state_dict({name: pretrained[name] for name in member.state_dict()})
    std = float(getattr(model.config, "initializer_range", 0.02))
    model.offramp.reset_parameters(std, parts.exit_norm(), parts.pooler())
    return model.to(next(model.parameters()).device)


def load_early_exit(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """An early-exit model from a run folder.

    Raises:
        RunError: the folder has no offramp section, or weights that are missing, damaged or no safetensors.
    """
    try:
        config = AutoConfig.from_pretrained(folder)
    except _UNREADABLE as error:
        raise RunError(f"{folder} holds no model: {_first_line(error)}") from error
    if getattr(config, SECTION, None) is None:
        raise RunError(f"{folder} is no offramp run: its config.json has no 'offramp' section")
    model_class = AutoModelForSequenceClassification._model_mapping[type(config)]
    try:
        ExitSettings.from_json(getattr(config, SECTION))
    except (TypeError, ValueError) as error:
        raise RunError(f"{folder} is damaged, its config.json sets up no exits: {_first_line(error)}") from error
    try:
        model, info = early_exit_class(model_class).from_pretrained(
            folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except OfframpError:
        raise
    except _UNREADABLE as error:
        raise RunError(f"{folder} is damaged, its model.safetensors cannot be read: {_first_line(error)}") from error
    missing = sorted(info["missing_keys"])
    if missing:
        raise RunError(f"{folder} is damaged: its weights lack {missing[0]} and {len(missing) - 1} more")
    return model.eval()


def parameters_of(model: nn.Module, which: str) -> list[tuple[str, nn.Parameter]]:
    """Named parameters of the ``heads`` (the early exits), of the ``backbone`` (all else), or ``all``.

    Any other name means the exits' submodules of that name: ``"policy"`` means ``offramp.heads.*.policy.*``.
    """
    prefix = SECTION + "."

    def belongs(name: str) -> bool:
        if which in ("heads", "backbone"):
            # A last exit like the others is trained with the encoder, as the model's own head is.
            early = name.startswith(prefix) and not name.startswith(f"{prefix}last.")
            return early == (which == "heads")
        return which == "all" or (name.startswith(prefix) and which in name.split("."))

    return [(name, p) for name, p in model.named_parameters() if belongs(name)]
