"""A torch module as an ONNX graph.

torch's older exporter is used: it needs no further package, takes a second a stage, and its dynamic shapes hold for
every family here. Attention comes in three forms:

- ``marked``: one operator of our own, ``offramp.Attention`` (query, key, value [B, L, H] and the mask), for ``fuse.py``
  to make a runtime's fused operator of;
- ``blocks``: standard operators, keys and values padded to whole blocks of tokens (``model.pooling.in_blocks``): a
  text's answer is the same to the last bit in any company then, which the rest of a sum, added one by one, would not
  give;
- ``plain``: as the family writes it, in standard operators.

The first two are for families whose attention knows nothing but lengths (``can_mark``).
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface

from offramp.errors import UnsupportedError
from offramp.model.pooling import in_blocks
from offramp.runtimes.export.stages import ANY_ROWS, DOMAIN, Part
from offramp.runtimes.manifest import OUT

__all__ = ["OPSET", "Form", "attention_as", "can_mark", "to_graph"]

OPSET = 20

Form = Literal["marked", "blocks", "plain"]
_FORMS: Mapping[Form, str] = {"marked": "offramp_marked", "blocks": "offramp_blocks", "plain": "eager"}
"""-> what transformers calls it."""

_AXES: Mapping[str, dict[int, str]] = {
    "tokens": {0: "rows", 1: "width"},
    "token_types": {0: "rows", 1: "width"},
    "hidden": {0: "rows", 1: "width"},
}


class _Attention(torch.autograd.Function):
    """Stands for attention while a graph is traced; what it returns has the right shape and no meaning."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, heads: int, scale: float) -> Tensor:
        return value.clone()

    @staticmethod
    def symbolic(g: Any, query: Any, key: Any, value: Any, mask: Any, heads: int, scale: float) -> Any:
        made = g.op(f"{DOMAIN}::Attention", query, key, value, mask, num_heads_i=heads, scale_f=scale)
        made.setType(value.type())
        return made


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """What transformers calls an attention interface: [B, heads, L, width] in, [B, L, heads, width] out."""
    heads, width = int(query.shape[1]), int(query.shape[3])
    flat = [x.transpose(1, 2).flatten(2) for x in (query, key, value)]
    mixed: Any = _Attention.apply(*flat, mask, heads, float(scaling))  # type: ignore[no-untyped-call]
    return mixed.unflatten(2, (heads, width)), None


def _mask(*_: Any, attention_mask: Tensor, **__: Any) -> Tensor:
    return attention_mask


def _attend_in_blocks(
    module: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, *, scaling: float, **_: Any
) -> tuple[Tensor, None]:
    """The same; ``mask`` is as wide as whole blocks are."""
    more = mask.shape[-1] - key.shape[2]
    # Token by token, as the projections left them: a runtime then pads without turning them over twice.
    key, value = (nn.functional.pad(x.transpose(1, 2), (0, 0, 0, 0, 0, more)).transpose(1, 2) for x in (key, value))
    weights = torch.softmax(query @ key.transpose(2, 3) * scaling + mask, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), None


def _mask_in_blocks(*_: Any, attention_mask: Tensor, **__: Any) -> Tensor:
    """[B, L] true and false -> [B, 1, 1, L'] to add: 0, or so little that nothing is left."""
    there = in_blocks(attention_mask.to(torch.float32), 0.0)
    return ((1 - there) * torch.finfo(torch.float32).min)[:, None, None, :]


AttentionInterface.register(_FORMS["marked"], _attend)
AttentionMaskInterface.register(_FORMS["marked"], _mask)
AttentionInterface.register(_FORMS["blocks"], _attend_in_blocks)
AttentionMaskInterface.register(_FORMS["blocks"], _mask_in_blocks)


def can_mark(model: Any) -> bool:
    """Whether the model's attention knows nothing but lengths: no position bias, no rotary tables, no window."""
    parts = model.cuts()[0]
    hidden, lengths = torch.zeros(1, 2, parts.hidden_size), torch.tensor([2])
    return bool(model._supports_attention_backend) and not parts.context(hidden, lengths).extras


@contextmanager
def attention_as(model: Any, form: Form) -> Iterator[None]:
    """Let a model, and the smaller ones in it, compute attention in a form that can be traced: see the top."""
    models: list[PreTrainedModel] = [model, *model.offramp.members]
    before = [each.config._attn_implementation for each in models]
    try:
        for each in models:
            each.set_attn_implementation(_FORMS[form])
        yield
    finally:
        for each, kind in zip(models, before, strict=True):
            each.set_attn_implementation(kind)


def to_graph(part: Part, arrays: tuple[Tensor, ...]) -> onnx.ModelProto:
    """Trace a part with sample arrays.

    Raises:
        UnsupportedError: torch cannot write one of its operators in ONNX.
    """
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shapes become constants (they are the heads' numbers and widths)
        part(*arrays)  # what heads compute once (a decomposition) is there before the trace
        names = part.gives
        outputs = [OUT + name for name in names]
        marked = part.model.config._attn_implementation == _FORMS["marked"]
        axes = {name: _AXES.get(name.removeprefix(OUT), {0: "rows"}) for name in (*part.reads, *outputs)}
        buffer = io.BytesIO()
        try:
            torch.onnx.export(
                part, arrays, buffer, input_names=list(part.reads), output_names=outputs, dynamic_axes=axes,  # type: ignore[arg-type]
                opset_version=OPSET, dynamo=False, do_constant_folding=False,
                custom_opsets={DOMAIN: 1} if marked else None,  # torch complains where it is not used
            )  # fmt: skip
        except (RuntimeError, torch.onnx.OnnxExporterError) as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            kind = part.model.config.model_type
            raise UnsupportedError(
                f"{kind} models with these exits cannot be exported ({reason}): serve the run with torch"
            ) from error
    return _tidied(onnx.load_from_string(buffer.getvalue()))


def _tidied(model: onnx.ModelProto) -> onnx.ModelProto:
    """Nothing left of the sample's shapes; and weights that the graph transposes, transposed.

    The exporter would do the latter too, but with it takes the sample's number of rows for every number of rows.
    """
    graph = model.graph
    del graph.value_info[:]
    weights = {tensor.name: tensor for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == ANY_ROWS:
            node.op_type, node.domain = "Identity", ""
        if node.op_type == "Transpose" and node.input[0] in weights:
            order = next(list(each.ints) for each in node.attribute if each.name == "perm")
            turned = np.ascontiguousarray(numpy_helper.to_array(weights[node.input[0]]).transpose(order))
            graph.initializer.append(numpy_helper.from_array(turned, node.output[0]))
        else:
            kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    if all(node.domain != DOMAIN for node in kept):
        others = [entry for entry in model.opset_import if entry.domain != DOMAIN]
        del model.opset_import[:]
        model.opset_import.extend(others)
    return model
