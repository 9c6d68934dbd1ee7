"""The graph as ONNX Runtime runs it fastest on a CPU.

Attention becomes ``MultiHeadAttention`` of com.microsoft, which reads the lengths themselves: padding is on the right,
so no mask is ever built in the graph. Query, key and value stay three products (a common one would have to be split,
which costs more than it saves). Two fusions that ONNX Runtime makes by itself are left out on purpose: its
``SkipLayerNormalization`` takes seven times as long as two additions and a ``LayerNormalization``, and its
``BiasGelu`` half as long again as an addition and a ``Gelu`` (docs/performance.md).
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import NodeProto, TensorProto, helper

from offramp.runtimes.export.stages import DOMAIN

__all__ = ["MICROSOFT", "fuse", "prune"]

MICROSOFT = "com.microsoft"
_SHAPING = ("Reshape", "Transpose")
_MASKED = float(np.finfo(np.float32).min)


def fuse(model: onnx.ModelProto) -> onnx.ModelProto:
    """Make ``offramp.Attention`` an operator of ONNX Runtime, fold constants, and drop what nobody reads."""
    graph = model.graph
    marked = [node for node in graph.node if node.domain == DOMAIN]
    if marked:
        _fuse_attention(graph, marked)
    used = {node.domain for node in graph.node}
    kept = [entry for entry in model.opset_import if entry.domain != DOMAIN]
    del model.opset_import[:]
    model.opset_import.extend(kept)
    if MICROSOFT in used:
        model.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    prune(graph)
    return _folded(model)


def _fuse_attention(graph: onnx.GraphProto, marked: list[NodeProto]) -> None:
    maker = {name: node for node in graph.node for name in node.output}
    readers: dict[str, list[NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    weights = {tensor.name for tensor in graph.initializer}
    for node in marked:
        given = [_projected(name, maker, weights) for name in node.input[:3]]
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        mixed = helper.make_node(
            "MultiHeadAttention", [*given, "", "lengths.32"], [node.output[0]], name=node.name, domain=MICROSOFT,
            num_heads=attributes["num_heads"], scale=attributes["scale"], mask_filter_value=_MASKED,
        )  # fmt: skip
        node.CopyFrom(mixed)
        _skip_shaping(node.output[0], readers)
    cast = helper.make_node("Cast", ["lengths"], ["lengths.32"], name="lengths.32", to=TensorProto.INT32)
    graph.node.insert(0, cast)


def _projected(name: str, maker: dict[str, NodeProto], weights: set[str]) -> str:
    """What stands before reshapes and transposes that undo each other: the projection [B, L, H] itself.

    They do where they begin at a projection, since the layer took it apart into heads and the marker put it together
    again. Where something else stands there (rotary positions, head by head) they stay.
    """
    found = name
    while found in maker and maker[found].op_type in _SHAPING:
        found = maker[found].input[0]
    node = maker.get(found)
    if node is not None and node.op_type == "Add":
        products = [maker[each] for each in node.input if each in maker]
        node = products[0] if len(products) == 1 else None
    is_projection = node is not None and node.op_type == "MatMul" and node.input[1] in weights
    return found if is_projection else name


def _skip_shaping(name: str, readers: dict[str, list[NodeProto]]) -> None:
    """Hand attention's [B, L, H] on as it is: whoever took it apart put it together again."""
    last = name
    while after := [node for node in readers[last] if node.op_type == "Reshape" and node.input[0] == last]:
        last = after[0].output[0]
    if last == name:
        return
    for node in readers[last]:
        for place, each in enumerate(node.input):
            if each == last:
                node.input[place] = name


def prune(graph: onnx.GraphProto) -> None:
    """Drop nodes and weights that no output needs."""
    needed = {output.name for output in graph.output}
    kept = []
    for node in reversed(graph.node):
        if any(name in needed for name in node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    weights = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """Constants computed and common parts joined by ONNX Runtime's basic optimisations, which fuse nothing."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_BASIC
        options.optimized_model_filepath = str(path)
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return onnx.load(path)
