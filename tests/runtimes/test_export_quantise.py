"""Int8 products against a few lines of numpy, and what a row's neighbours may do to it."""

from __future__ import annotations

import collections
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from offramp.runtimes.export.quantise import INVARIANT, KINDS, activations, quantise
from offramp.runtimes.onnx import open_session

WIDTH, OUTPUTS = 24, 20
RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(WIDTH, OUTPUTS)).astype(np.float32)
WEIGHT[:, 7] = 0
BIAS = RNG.normal(size=OUTPUTS).astype(np.float32)
RANGES = {"x": (-4.0, 6.0)}


def product(weight: np.ndarray[Any, Any] = WEIGHT, *, bias: bool = True) -> onnx.ModelProto:
    """Two products over one input, the first with a bias."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["b", "xw"], ["y"]) if bias else helper.make_node("Identity", ["xw"], ["y"]),
        helper.make_node("MatMul", ["x", "w"], ["z"]),
    ]
    values = {"w": weight, "b": BIAS}
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", "width", WIDTH])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("y", "z")],
        [numpy_helper.from_array(value, name) for name, value in values.items() if bias or name == "w"],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def run(model: onnx.ModelProto, x: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    said: list[np.ndarray[Any, Any]] = open_session(model.SerializeToString(), threads=1).run(None, {"x": x})
    return said


def twin(kind: str, x: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The product as int8 has it, in plain numpy."""
    column = np.where((peak := np.abs(WEIGHT).max(axis=0)) > 0, peak / 127, 1).astype(np.float32)
    weight = np.round(WEIGHT / column)
    if kind == "rows":
        row = np.abs(x).max(axis=-1, keepdims=True)
        return np.round(x / row * 127) @ weight * (row / 127) * column
    low, high = RANGES["x"] if kind == "static" else (min(float(x.min()), 0.0), max(float(x.max()), 0.0))
    step = (high - low) / 255
    zero = np.round(-low / step)
    steps = np.clip(np.round(x / step) + zero, 0, 255) - zero
    return steps @ weight * step * column


@pytest.mark.parametrize("kind", ["rows", "static", "dynamic"])
def test_a_product_is_what_numpy_makes_of_it(kind: Any) -> None:
    x = RNG.normal(size=(3, 5, WIDTH)).astype(np.float32)
    y, z = run(quantise(product(), kind, RANGES), x)
    # A number halfway between two steps may go either way: one step of one input.
    close = np.abs(z - twin(kind, x)) < 1e-3
    assert close.mean() > 0.98
    np.testing.assert_allclose(y, z + BIAS, atol=1e-5)
    assert np.abs(z - x @ WEIGHT).max() < 0.25
    assert not np.allclose(z, x @ WEIGHT, atol=1e-4)


def test_weights_in_blocks_are_near_float32() -> None:
    x = RNG.normal(size=(3, 5, WIDTH)).astype(np.float32)
    y, z = run(quantise(product(), "weights"), x)
    np.testing.assert_allclose(z, x @ WEIGHT, atol=0.15)
    np.testing.assert_allclose(y, z + BIAS, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_every_product_is_int8_and_an_input_is_quantised_once(kind: Any) -> None:
    made = quantise(product(), kind, RANGES)
    found = collections.Counter(node.op_type for node in made.graph.node)
    assert found["MatMul"] == 0
    assert found["MatMulNBits" if kind == "weights" else "MatMulIntegerToFloat"] == 2
    assert found["QuantizeLinear"] + found["DynamicQuantizeLinear"] == (0 if kind == "weights" else 1)
    kept = [numpy_helper.to_array(each) for each in made.graph.initializer]
    assert not any(value.dtype == np.float32 and value.size >= WEIGHT.size for value in kept)


def test_the_graph_that_was_given_stays() -> None:
    model = product()
    before = model.SerializeToString()
    quantise(model, "rows")
    assert model.SerializeToString() == before
    assert activations(model) == ["x"]


def test_narrow_products_stay_float32() -> None:
    narrow = product(WEIGHT[:, :2], bias=False)
    assert activations(narrow) == []
    x = RNG.normal(size=(1, 2, WIDTH)).astype(np.float32)
    np.testing.assert_allclose(run(quantise(narrow, "rows"), x)[1], x @ WEIGHT[:, :2], atol=1e-5)


def test_rows_of_nothing_but_zeros() -> None:
    """Padding that ``merge`` made."""
    x = RNG.normal(size=(2, 3, WIDTH)).astype(np.float32)
    x[1, 2] = 0
    y, z = run(quantise(product(), "rows"), x)
    assert (z[1, 2] == 0).all()
    np.testing.assert_allclose(y[1, 2], BIAS)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if INVARIANT[kind]])
@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 40), row=st.integers(0, 39), size=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_neighbours_do_not_matter(kind: Any, rows: int, row: int, size: float, seed: int) -> None:
    session = SESSIONS[kind]
    x = np.random.default_rng(seed).normal(size=(rows, 3, WIDTH)).astype(np.float32)
    row %= rows
    company = x * np.float32(size)
    company[row] = x[row]
    for together, alone in zip(
        session.run(None, {"x": company}), session.run(None, {"x": x[row : row + 1]}), strict=True
    ):
        assert np.array_equal(together[row], alone[0])


SESSIONS = {
    kind: open_session(quantise(product(), kind, RANGES).SerializeToString(), threads=1)  # type: ignore[arg-type]
    for kind in KINDS
}


def test_neighbours_matter_where_that_is_said() -> None:
    x = RNG.normal(size=(2, 3, WIDTH)).astype(np.float32)
    x[1] *= 50
    together, alone = (SESSIONS["dynamic"].run(None, {"x": each})[0][0] for each in (x, x[:1]))
    assert np.abs(together - alone).max() > 0.1


# Embeddings


TABLE = RNG.normal(size=(30, WIDTH)).astype(np.float32)
TABLE[4] = 0


def lookup(table: np.ndarray[Any, Any] = TABLE, index: str = "tokens") -> onnx.ModelProto:
    """Rows of a table, found by the tokens or by something else."""
    graph = helper.make_graph(
        [helper.make_node("Gather", ["table", index], ["y"])], "g",
        [helper.make_tensor_value_info(index, TensorProto.INT64, ["rows", "width"])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(table, "table")],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


def look_up(model: onnx.ModelProto, index: str = "tokens") -> np.ndarray[Any, Any]:
    numbers = np.arange(30).reshape(5, 6)
    said: np.ndarray[Any, Any] = open_session(model.SerializeToString(), threads=1).run(None, {index: numbers})[0]
    return said.reshape(30, -1)


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_are_kept_in_eight_bits_with_a_scale_a_row(kind: Any) -> None:
    made = quantise(lookup(), kind, RANGES)
    found = look_up(made)
    step = np.abs(TABLE).max(axis=1, keepdims=True) / 127
    assert (np.abs(found - TABLE) <= step / 2 + 1e-6).all()
    assert not np.allclose(found, TABLE, atol=1e-4)
    assert not found[4].any()
    kept = [numpy_helper.to_array(each) for each in made.graph.initializer]
    assert not any(value.dtype == np.float32 and value.size >= TABLE.size for value in kept)


@pytest.mark.parametrize(("table", "index"), [(TABLE, "positions"), (TABLE[:, :2], "tokens")])
def test_other_tables_stay_float32(table: np.ndarray[Any, Any], index: str) -> None:
    """Positions may find angles, of which eight bits are not enough."""
    assert np.array_equal(look_up(quantise(lookup(table, index), "rows"), index), table)
