"""How a model computes attention, by transformers' names: ``eager``, ``sdpa``, ``flash_attention_2``, hub kernels.

Those of the flash kind take padding out by themselves: a cut's context hands them the mask [B, L], made anew from the
lengths for every stage, and transformers finds the tokens by it in every layer.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers.masking_utils import AttentionMaskInterface
from transformers.utils.generic import is_flash_attention_requested

from offramp.errors import KnobError, UnsupportedError

__all__ = ["attend_by"]


def attend_by(model: Any, attention: str) -> None:
    """Let a model, and the smaller ones in it, compute attention by another implementation. In place.

    Args:
        model: with exits, on the device and in the dtype in which it will run.
        attention: as ``attn_implementation`` of transformers.

    Raises:
        UnsupportedError: the family knows no implementation but its own.
        KnobError: there is none of this name, it is not installed, or it cannot serve this model.
    """
    before = model.config._attn_implementation
    if attention != before and not model._supports_attention_backend:
        raise UnsupportedError(
            f"{model.config.model_type} models have one implementation of attention, {before}, and cannot take "
            f"{attention!r}: leave attention out"
        )
    try:
        model.set_attn_implementation(attention)
    except (ImportError, OSError, RuntimeError, ValueError) as error:  # not there, not here, or not to be fetched
        raise KnobError(
            f"attention {attention!r} cannot be used here ({_reason(error)}): install what it needs, or take sdpa"
        ) from error
    wrong = _what_is_wrong(model)
    if wrong is not None:
        model.set_attn_implementation(before)
        raise KnobError(f"attention {attention!r} {wrong}")


def _what_is_wrong(model: Any) -> str | None:
    """Why the implementation that a model has now would not answer, or answer wrongly; None: it will do."""
    # What it was asked for may stand for another: a kernel of the hub where a package is not installed.
    attention, dtype = model.config._attn_implementation, model.dtype
    if attention not in AttentionMaskInterface():
        return "takes no mask, so that texts would read padding: register one (AttentionMaskInterface), or take sdpa"
    if is_flash_attention_requested(requested_attention_implementation=attention) and dtype == torch.float32:
        return "computes in bfloat16 and float16 only: give one of them as dtype, or take sdpa"
    return None


def _reason(error: BaseException) -> str:
    """The first sentence of an error, without transformers' preface to it."""
    line = (str(error).strip() or type(error).__name__).splitlines()[0].rpartition("due to the following error: ")[2]
    return line.partition(". ")[0].rstrip(".")
