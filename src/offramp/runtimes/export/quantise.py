"""Int8: the weights' products over eight-bit numbers; everything between them stays float32.

What an activation's eight bits stand for decides whether a text's neighbours change its answer:

- ``rows``: a scale for each token, from its largest number. Nobody's neighbours matter, and of the two kinds for which
  that holds and that are fast it is the nearer to float32.
- ``static``: one range for each product's input, measured on texts beforehand. Nobody's neighbours matter either, and
  nothing is looked up at run time, which saves a fifth of it; a channel that runs large leaves few steps to the others.
- ``weights``: ``MatMulNBits``, a scale for each 32 numbers of each token. The nearest to float32, and hardly faster.
- ``dynamic``: one range for the whole batch, as ``onnxruntime.quantization.quantize_dynamic`` does it. Padding and
  neighbours change every answer a little.

Weights are symmetric with a scale for each output. Of the tokens' embeddings each row is kept in eight bits with a
scale of its own: they are most of a small model's bytes. Norms, attention itself and the heads' products over one
vector a text stay float32.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import NodeProto, helper, numpy_helper

from offramp.runtimes.export.fuse import MICROSOFT, prune

__all__ = ["INVARIANT", "KINDS", "SMALLEST", "Kind", "Range", "activations", "quantise"]

Kind = Literal["rows", "static", "weights", "dynamic"]
KINDS: tuple[str, ...] = get_args(Kind)
INVARIANT: Mapping[str, bool] = {"rows": True, "static": True, "weights": False, "dynamic": False}
"""Whether a text's answer is the same in any company."""

SMALLEST = 16
"""Products narrower than this on either side stay as they are."""
_BLOCK = 32

Range = tuple[float, float]
"""The least and the largest number that an activation was seen to hold."""

_Floats = npt.NDArray[np.float32]


@dataclass
class _Work:
    """A graph while it is rewritten."""

    weights: dict[str, onnx.TensorProto]
    added: dict[str, onnx.TensorProto] = field(default_factory=dict)
    nodes: list[NodeProto] = field(default_factory=list)
    done: dict[str, str] = field(default_factory=dict)

    def constant(self, name: str, value: Any, dtype: Any = np.float32) -> str:
        """A weight by name, made once."""
        if name not in self.added:
            self.added[name] = numpy_helper.from_array(np.asarray(value, dtype=dtype), name)
        return name

    def node(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """A new node in its place; gives its output's name."""
        self.nodes.append(helper.make_node(kind, inputs, [output], name=output, **attributes))
        return output


def _wide(graph: onnx.GraphProto) -> set[str]:
    """Names of the matrices that are worth keeping in eight bits."""
    return {tensor.name for tensor in graph.initializer if len(tensor.dims) == 2 and min(tensor.dims) >= SMALLEST}


def _products(graph: onnx.GraphProto) -> list[NodeProto]:
    """Products over weights worth making int8."""
    wide = _wide(graph)
    return [node for node in graph.node if node.op_type == "MatMul" and node.input[1] in wide]


def _lookups(graph: onnx.GraphProto) -> list[NodeProto]:
    """Where tokens find their embeddings."""
    wide = _wide(graph)
    return [
        node
        for node in graph.node
        if node.op_type == "Gather"
        and node.input[1] == "tokens"
        and node.input[0] in wide
        and all(attribute.i == 0 for attribute in node.attribute)
    ]


def activations(model: onnx.ModelProto) -> list[str]:
    """Names of what goes into the products that ``quantise`` would change."""
    return list(dict.fromkeys(node.input[0] for node in _products(model.graph)))


def quantise(model: onnx.ModelProto, kind: Kind, ranges: Mapping[str, Range] | None = None) -> onnx.ModelProto:
    """A copy of a fused graph with int8 products.

    Args:
        model: as ``fuse`` returned it.
        kind: see above.
        ranges: of every activation (``activations``), for ``static``.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    products = {node.output[0]: node for node in _products(graph)}
    lookups = {node.output[0] for node in _lookups(graph)}
    biases = _biases(graph, set(products)) if kind in ("static", "dynamic") else {}
    work = _Work({tensor.name: tensor for tensor in graph.initializer})
    folded = {add.output[0] for add, _ in biases.values()}
    for node in graph.node:
        if node.output[0] in products:
            add, bias = biases.get(node.output[0], (None, None))
            _product(work, node, kind, ranges, bias, (add or node).output[0])
        elif node.output[0] in lookups:
            _lookup(work, node)
        elif node.output[0] not in folded:
            work.nodes.append(node)
    kept = list(work.nodes)
    del graph.node[:]
    graph.node.extend(kept)
    graph.initializer.extend(work.added.values())
    if all(entry.domain != MICROSOFT for entry in made.opset_import):
        made.opset_import.append(helper.make_opsetid(MICROSOFT, 1))
    prune(graph)
    return made


def _biases(graph: onnx.GraphProto, products: set[str]) -> dict[str, tuple[NodeProto, str]]:
    """Product -> the addition of a bias right after it, and that bias."""
    vectors = {tensor.name for tensor in graph.initializer if len(tensor.dims) == 1}
    uses: dict[str, int] = defaultdict(int)
    for node in graph.node:
        for name in node.input:
            uses[name] += 1
    found = {}
    for node in graph.node:
        if node.op_type == "Add":
            for product, bias in (tuple(node.input), tuple(node.input)[::-1]):
                if product in products and uses[product] == 1 and bias in vectors:
                    found[product] = (node, bias)
    return found


def _product(
    work: _Work,
    node: NodeProto,
    kind: Kind,
    ranges: Mapping[str, Range] | None,
    bias: str | None,
    output: str,
) -> None:
    """Write the int8 product of one node."""
    source, name = node.input
    weight = numpy_helper.to_array(work.weights[name])
    if kind == "weights":
        _in_blocks(work, source, name, weight, output)
        return
    steps, scales = _in_steps(weight, axis=0)
    work.constant(f"{name}.int8", steps, np.int8)
    work.constant(f"{name}.scales", scales[0])
    given, scale, zero = _activation(work, source, kind, ranges)
    inputs = [given, f"{name}.int8", scale, f"{name}.scales", zero, "", bias or ""]
    while not inputs[-1]:
        inputs.pop()
    if kind != "rows":
        work.node("MatMulIntegerToFloat", inputs, output, domain=MICROSOFT)
        return
    work.node("MatMulIntegerToFloat", inputs, f"{output}.unscaled", domain=MICROSOFT)
    work.node("Mul", [f"{output}.unscaled", f"{source}.row"], output)


def _in_steps(weight: _Floats, axis: int) -> tuple[_Floats, _Floats]:
    """Numbers from -127 to 127, and the scale of each line along an axis, which stays with length 1."""
    peaks = np.abs(weight).max(axis=axis, keepdims=True)
    scales = np.where(peaks > 0, peaks / 127, 1.0)
    return np.clip(np.round(weight / scales), -127, 127), scales


def _lookup(work: _Work, node: NodeProto) -> None:
    """Write a look-up in a table of int8, a scale a row."""
    (name, tokens), output = node.input, node.output[0]
    table = numpy_helper.to_array(work.weights[name])
    steps, scales = _in_steps(table, axis=1)
    work.constant(f"{name}.int8", steps, np.int8)
    work.constant(f"{name}.scales", scales)
    found = work.node("Gather", [f"{name}.int8", tokens], f"{output}.int8")
    numbers = work.node("Cast", [found], f"{output}.steps", to=onnx.TensorProto.FLOAT)
    scale = work.node("Gather", [f"{name}.scales", tokens], f"{output}.scale")
    work.node("Mul", [numbers, scale], output)


def _activation(work: _Work, source: str, kind: Kind, ranges: Mapping[str, Range] | None) -> tuple[str, str, str]:
    """An activation in eight bits, once for all products that read it: its name, scale and zero point."""
    names = (f"{source}.uint8", f"{source}.scale", f"{source}.zero")
    if kind == "rows":
        names = (names[0], work.constant("step", 1 / 127), work.constant("middle", 128, np.uint8))
    if source in work.done:
        return names
    work.done[source] = names[0]
    if kind == "dynamic":
        work.nodes.append(helper.make_node("DynamicQuantizeLinear", [source], list(names), name=names[0]))
    elif kind == "rows":
        _rows(work, source, names)
    else:
        assert ranges is not None
        _static(work, source, ranges[source], names)
    return names


def _static(work: _Work, source: str, seen: Range, names: tuple[str, str, str]) -> None:
    low, high = min(seen[0], 0.0), max(seen[1], 0.0)
    scale = (high - low) / 255 or 1.0
    work.constant(names[1], scale)
    work.constant(names[2], np.clip(np.round(-low / scale), 0, 255), np.uint8)
    work.node("QuantizeLinear", [source, names[1], names[2]], names[0])


def _rows(work: _Work, source: str, names: tuple[str, str, str]) -> None:
    """Every token as shares of its own largest number, in steps of 1/127 around 128."""
    last = work.constant("last", [-1], np.int64)
    size = work.node("Abs", [source], f"{source}.abs")
    peak = work.node("ReduceMax", [size, last], f"{source}.peak", keepdims=1)
    row = work.node("Max", [peak, work.constant("least", 1e-30)], f"{source}.row")
    share = work.node("Div", [source, row], f"{source}.share")
    work.node("QuantizeLinear", [share, names[1], names[2]], names[0])


def _in_blocks(work: _Work, source: str, name: str, weight: _Floats, output: str) -> None:
    """``MatMulNBits``: weights in blocks along their inputs, which ONNX Runtime does with activations too."""
    inputs, outputs = weight.shape
    blocks = -(-inputs // _BLOCK)
    padded = np.zeros((outputs, blocks * _BLOCK), dtype=np.float32)
    padded[:, :inputs] = weight.T
    padded = padded.reshape(outputs, blocks, _BLOCK)
    steps, scales = _in_steps(padded, axis=-1)
    work.constant(f"{name}.blocks", steps + 128, np.uint8)
    work.constant(f"{name}.scales", scales.reshape(-1))
    work.node(
        "MatMulNBits", [source, f"{name}.blocks", f"{name}.scales"], output, domain=MICROSOFT,
        K=inputs, N=outputs, bits=8, block_size=_BLOCK, accuracy_level=4,
    )  # fmt: skip
