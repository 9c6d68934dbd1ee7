"""All stages as one graph, for a text alone: every exit's score is asked inside, and an ``If`` leads out or on.

A stage takes a small text about as long as a call takes between Python and a runtime, and threads that rest between two
calls have to be woken. In one graph neither happens, and of an exit nothing is computed but its logits and the one
score that decides. In batches there is no such graph: there rows part ways, and the engine is needed to fill up what is
left.

The stages' own graphs are put together as they are, so that a text alone is answered to the last bit as by the stages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx
from onnx import GraphProto, NodeProto, TensorProto, ValueInfoProto, helper

from offramp.criteria.base import Criterion, Scored, score_name
from offramp.runtimes.export.fuse import prune
from offramp.runtimes.manifest import EXIT, LAST, OUT, THRESHOLD

__all__ = ["single_graph", "single_score"]

_INPUTS = frozenset({"tokens", "token_types", "lengths", THRESHOLD, LAST})
"""Names that mean the same in every stage."""


def single_score(criterion: Criterion | None, stages: Sequence[onnx.ModelProto]) -> str | None:
    """The score by which texts can leave in one graph; None: there are no exits, or the criterion is none of that kind.

    Args:
        criterion: of the operating point; it must compare one number of each exit alone with a threshold.
        stages: graphs of all stages, each with its exit.
    """
    if not isinstance(criterion, Scored) or criterion.by_exit or set(criterion.knobs) != {"threshold"}:
        return None
    score = score_name(criterion)
    given = [{output.name for output in stage.graph.output} for stage in stages[:-1]]
    there = all({f"{OUT}extras.{score}", f"{OUT}hidden"} <= names for names in given)
    return score if given and there else None


def single_graph(stages: Sequence[onnx.ModelProto], score: str) -> onnx.ModelProto:
    """One graph: tokens, ``threshold`` (a float32 number) and ``last_stage`` (an int64) in, ``logits`` [1, C] and
    ``exit`` [1] out.

    Args:
        stages: graphs of all stages, each with its exit; left as they are.
        score: a text leaves where this is below the threshold, by ``single_score``, and at ``last_stage`` in any case.
    """
    inner: GraphProto | None = None
    for place in reversed(range(len(stages))):
        inner = _with_exit(stages[place].graph, place, score, inner)
    assert inner is not None
    first = stages[0]
    inner.input.extend(first.graph.input)
    inner.input.append(helper.make_tensor_value_info(THRESHOLD, TensorProto.FLOAT, []))
    inner.input.append(helper.make_tensor_value_info(LAST, TensorProto.INT64, []))
    _called(inner, {inner.output[0].name: f"{OUT}logits", inner.output[1].name: f"{OUT}{EXIT}"})
    opsets = {entry.domain: entry for stage in stages for entry in stage.opset_import}
    return helper.make_model(inner, opset_imports=list(opsets.values()), ir_version=first.ir_version)


def _with_exit(stage: GraphProto, place: int, score: str, later: GraphProto | None) -> GraphProto:
    """A stage's nodes and, unless it is the last, the ``If`` that gives its answer or that of the stages after it."""
    own, outputs = f"{place}/", {"logits": f"{OUT}logits", "score": f"{OUT}extras.{score}", "hidden": f"{OUT}hidden"}
    body = GraphProto()
    body.CopyFrom(stage)
    wanted = {outputs["logits"]} if later is None else set(outputs.values())
    _keep_outputs(body, wanted)
    prune(body)
    names = {name: own + name for name in _names(body) - _INPUTS}
    if place:
        names["hidden"] = f"{place - 1}/{outputs['hidden']}"
    _called(body, names)
    for node in body.node:
        node.name = own + node.name
    logits, number = own + outputs["logits"], f"{own}{EXIT}"
    if later is None:
        nodes, said = [*body.node, _number(place, number)], (logits, number)
    else:
        leave = [
            helper.make_node("Less", [own + outputs["score"], THRESHOLD], [f"{own}sure"]),
            _number(place, f"{own}here"),
            helper.make_node("LessOrEqual", [LAST, f"{own}here"], [f"{own}over"]),
            helper.make_node("Or", [f"{own}sure", f"{own}over"], [f"{own}leaves"]),
        ]
        said = (f"{own}answer", f"{own}answered")
        branches = {"then_branch": _left(place, logits), "else_branch": later}
        nodes = [*body.node, *leave, helper.make_node("If", [f"{own}leaves"], list(said), **branches)]
    return helper.make_graph(nodes, f"{own}stage", [], _outputs(*said), initializer=list(body.initializer))


def _left(place: int, logits: str) -> GraphProto:
    """What is said where a text leaves."""
    names = (f"{place}/left.logits", f"{place}/left.{EXIT}")
    nodes = [helper.make_node("Identity", [logits], [names[0]]), _number(place, names[1])]
    return helper.make_graph(nodes, f"{place}/left", [], _outputs(*names))


def _number(place: int, name: str) -> NodeProto:
    return helper.make_node("Constant", [], [name], value=helper.make_tensor(name, TensorProto.INT64, [1], [place]))


def _outputs(logits: str, number: str) -> list[ValueInfoProto]:
    return [
        helper.make_tensor_value_info(logits, TensorProto.FLOAT, None),
        helper.make_tensor_value_info(number, TensorProto.INT64, [1]),
    ]


def _keep_outputs(graph: GraphProto, wanted: set[str]) -> None:
    kept = [output for output in graph.output if output.name in wanted]
    del graph.output[:]
    graph.output.extend(kept)


def _names(graph: GraphProto) -> set[str]:
    """Of everything that is computed or stored."""
    computed = {name for node in graph.node for name in node.output if name}
    return computed | {tensor.name for tensor in graph.initializer}


def _called(graph: GraphProto, names: Mapping[str, str]) -> None:
    """Call things otherwise."""
    for node in graph.node:
        node.input[:] = [names.get(name, name) for name in node.input]
        node.output[:] = [names.get(name, name) for name in node.output]
        for attribute in node.attribute:
            if attribute.HasField("g"):  # a branch sees what stands around it
                _called(attribute.g, names)
    for each in (*graph.initializer, *graph.output):
        each.name = names.get(each.name, each.name)
