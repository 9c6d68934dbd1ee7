"""Cutting a Hugging Face encoder into layers, without copying its code.

All these encoders are an embedding, a list of layers, and something computed once and handed to each layer (a mask,
a position bias, rotary tables). ``cut(model)`` finds the adapter of the model's family by ``config.model_type``;
adapters live in ``backbones/``, one small file each. A new one is added to the table below and to the cases of the
contract test, which fails until it is.
"""

from __future__ import annotations

from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_MASKED_LM_MAPPING_NAMES,
)

from offramp.errors import UnsupportedError
from offramp.model.backbones.albert import AlbertCut
from offramp.model.backbones.base import Context, Cut, lengths_to_mask
from offramp.model.backbones.bert import BertCut
from offramp.model.backbones.deberta_v2 import DebertaV2Cut
from offramp.model.backbones.distilbert import DistilBertCut
from offramp.model.backbones.electra import ElectraCut
from offramp.model.backbones.modernbert import ModernBertCut
from offramp.model.backbones.mpnet import MPNetCut
from offramp.model.backbones.roberta import RobertaCut

__all__ = ["SUPPORTED", "Context", "Cut", "adapter_of", "cut", "lengths_to_mask"]

_ADAPTERS: tuple[type[Cut], ...] = (
    AlbertCut,
    BertCut,
    DebertaV2Cut,
    DistilBertCut,
    ElectraCut,
    ModernBertCut,
    MPNetCut,
    RobertaCut,
)

SUPPORTED: dict[str, type[Cut]] = {name: adapter for adapter in _ADAPTERS for name in adapter.model_types}
"""``config.model_type`` -> the adapter that cuts it."""


def cut(model: PreTrainedModel) -> Cut:
    """Cut a model for sequence classification into embedding, layers, pooling and head.

    Args:
        model: an instance of a class that ``AutoModelForSequenceClassification`` makes, or of a subclass of one.

    Raises:
        UnsupportedError: a family without an adapter (the message names those that have one), a model that is
            configured as a decoder, or one that is not for sequence classification.
    """
    config = model.config
    adapter = adapter_of(config)
    if not isinstance(model, MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(config), ())):
        raise UnsupportedError(
            f"{type(model).__name__} is not a model for sequence classification: "
            "load it with AutoModelForSequenceClassification.from_pretrained"
        )
    return adapter(model)


def adapter_of(config: PretrainedConfig) -> type[Cut]:
    """What cuts models of a configuration; asked before weights are loaded, it spares loading them.

    Raises:
        UnsupportedError: nothing does.
    """
    adapter = SUPPORTED.get(config.model_type)
    if adapter is None or config.is_encoder_decoder or getattr(config, "is_decoder", False):
        raise UnsupportedError(
            f"offramp cannot cut {_kind(config)} into layers with exits: "
            f"use an encoder of one of these families: {', '.join(sorted(SUPPORTED))}"
        )
    return adapter


def _kind(config: PretrainedConfig) -> str:
    """What a model is, in words that say why it is not cut."""
    family = config.model_type
    if config.is_encoder_decoder:
        return f"{family!r}, an encoder-decoder model,"
    if getattr(config, "is_decoder", False):
        return f"{family!r} configured as a decoder (is_decoder=True)"
    causal = family in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and family not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    if causal and family != "xlnet":  # that one reads both ways, though transformers lists it among the causal ones
        return f"{family!r}, a decoder-only model,"
    return f"{family!r} models"
