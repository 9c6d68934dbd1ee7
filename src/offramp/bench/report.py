"""A comparison for people: a table for the terminal, and one HTML file with plot, table, histogram and examples.

The HTML holds everything it shows (no link leaves it), reads on a phone, and follows light and dark settings.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from rich.table import Table

__all__ = ["as_table", "render_html"]

_STYLE = """
:root { color-scheme: light dark; --ink: #1c1e21; --soft: #5f6368; --paper: #ffffff; --line: #dfe1e5; --bar: #0072b2; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e8eaed; --soft: #a0a5ab; --paper: #16181b; --line: #34373c; --bar: #56b4e9; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1.2rem; max-width: 62rem; font: 16px/1.5 system-ui, sans-serif;
       color: var(--ink); background: var(--paper); }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; }
.soft, footer { color: var(--soft); font-size: .85rem; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
th, td { padding: .35rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child, td.text { text-align: left; } td.text { white-space: normal; min-width: 14rem; }
img { max-width: 100%; height: auto; border-radius: 6px; background: white; }
.bar { display: grid; grid-template-columns: 6.5rem 1fr 3.5rem; gap: .5rem; align-items: center; font-size: .85rem; }
.bar i { display: block; height: .8rem; min-width: 1px; background: var(--bar); border-radius: 2px; }
details { margin: .4rem 0; } summary { cursor: pointer; }
footer { margin-top: 2.5rem; border-top: 1px solid var(--line); padding-top: .8rem; overflow-wrap: anywhere; }
"""


def as_table(result: Mapping[str, Any]) -> Table:
    """The comparison for a terminal: a row each contender, a column each target."""
    full, best = result["full_depth"], result["oracle"]
    caption = "In brackets: the layer speed-up reached on the rows scored. 'not reached': no knob is that fast."
    if best is not None and best["by"] != result["metric"]:
        caption += f"\n{best['rule']}"
    table = Table(
        title=f"{result['metric']} x 100 at a layer speed-up, with 95 % intervals ({_how(result)})",
        caption=caption,
        caption_justify="left",
    )
    table.add_column("")
    for target in result["targets"]:
        table.add_column(f"{target:g}x", justify="right")
    table.add_column("area", justify="right")
    for row in result["rows"]:
        area = f"{100 * row['area']:.1f}"
        table.add_row(row["name"], *(_cell(cell, lines="\n") for cell in row["cells"]), area)
    filler = [""] * max(0, len(result["targets"]) - 1)
    if result["targets"]:
        table.add_section()
        table.add_row("full depth", f"{100 * full['score']:.1f} (1x)", *filler, "")
        if best is not None:
            table.add_row("oracle", f"{100 * best['score']:.1f} ({best['layer_speedup']:.2f}x)", *filler, "")
    return table


def render_html(
    result: Mapping[str, Any],
    image: bytes,
    *,
    texts: Sequence[str] | None = None,
    title: str = "Speed against accuracy",
    notes: Mapping[str, str] | None = None,
) -> str:
    """The report as one HTML page.

    Args:
        result: of ``offramp.calibration.compare.compare``.
        image: PNG of ``offramp.bench.plots.plot_comparison``.
        texts: of the trace's rows, to show the examples; without them the examples show row numbers.
        title: heading, such as the run's and the data's names.
        notes: more provenance for the footer, name -> value (run, data, commit, machine).
    """
    picture = base64.b64encode(image).decode()
    head = (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>"
    )
    body = [
        f"<h1>{escape(title)}</h1>",
        f"<p>{escape(_summary(result))}</p>",
        f'<img alt="{escape(result["metric"])} against layer speed-up" src="data:image/png;base64,{picture}">',
        _table_html(result),
        _exits_html(result),
        _histogram_html(result),
        _examples_html(result, texts),
        _footer_html(result, notes or {}),
    ]
    return head + "<body>" + "\n".join(body) + "</body></html>\n"


def _how(result: Mapping[str, Any]) -> str:
    return f"n = {result['n']:,}, mean of {result['splits']} splits, chosen on one half and scored on the other"


def _cell(cell: Mapping[str, Any] | None, *, lines: str) -> str:
    if cell is None:
        return "not reached"
    low, high = cell["interval"]
    return f"{100 * cell['score']:.1f} ({cell['layer_speedup']:.2f}x){lines}{100 * low:.1f} to {100 * high:.1f}"


def _gap(gap: Mapping[str, Any] | None) -> str:
    if gap is None:
        return ""
    low, high = gap["interval"]
    return f"{100 * gap['mean']:+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"


def _summary(result: Mapping[str, Any]) -> str:
    full = 100 * result["full_depth"]["score"]
    parts = [f"Full depth ({result['num_layers']} layers) scores {full:.1f} {result['metric']} x 100."]
    shown = result["histogram"]["target"]
    at = [
        (cell["score"], row["name"], cell)
        for row in result["rows"]
        for cell in row["cells"]
        if cell is not None and cell["target"] == shown
    ]
    if at:
        _, name, cell = max(at, key=lambda entry: entry[0])
        gap = 100 * cell["against_full_depth"]["mean"]
        speed = f"{cell['layer_speedup']:.2f}x"
        parts.append(f"At a layer speed-up of {speed} the best row is {name}, {gap:+.1f} points against full depth.")
    return " ".join(parts)


def _table_html(result: Mapping[str, Any]) -> str:
    heads = "".join(f"<th>{target:g}x</th>" for target in result["targets"])
    rows = []
    for row in result["rows"]:
        cells = "".join(f"<td>{_cell_html(cell, result['baseline'] != row['name'])}</td>" for cell in row["cells"])
        name = f'<td title="{escape(row["label"])}">{escape(row["name"])}</td>'
        rows.append(f"<tr>{name}{cells}<td>{100 * row['area']:.1f}</td></tr>")
    return (
        f"<h2>At a given layer speed-up</h2><p class='soft'>{escape(result['metric'])} x 100 ({escape(_how(result))}), "
        f"95 % interval, and the paired difference against {escape(result['baseline'])}. Area: mean over layer "
        "fractions.</p>"
        f"<div class='scroll'><table><tr><th></th>{heads}<th>area</th></tr>{''.join(rows)}</table></div>"
    )


def _cell_html(cell: Mapping[str, Any] | None, compared: bool) -> str:
    if cell is None:
        return "<span class='soft'>not reached</span>"
    gap = _gap(cell["against_baseline"]) if compared else ""
    return _cell(cell, lines="<br><span class='soft'>") + (f"<br>{gap}" if gap else "") + "</span>"


def _exits_html(result: Mapping[str, Any]) -> str:
    names = list(result["full_depth"]["metrics"])
    heads = "".join(f"<th>{escape(name)}</th>" for name in names)
    rows = [
        f"<tr><td>always after layer {one['layer']}</td><td>{one['layer_speedup']:.2f}x</td>{_metrics(one, names)}</tr>"
        for one in result["exits"]
    ]
    best = result["oracle"]
    if best is not None:
        rows.append(f"<tr><td>oracle</td><td>{best['layer_speedup']:.2f}x</td>{_metrics(best, names)}</tr>")
    said = "" if best is None else f"<p class='soft'>{escape(best['rule'])}</p>"
    return (
        f"<h2>Every exit by itself</h2>{said}"
        f"<div class='scroll'><table><tr><th></th><th>layers</th>{heads}</tr>{''.join(rows)}</table></div>"
    )


def _metrics(one: Mapping[str, Any], names: Sequence[str]) -> str:
    return "".join(f"<td>{one['metrics'][name]:.3f}</td>" for name in names)


def _histogram_html(result: Mapping[str, Any]) -> str:
    shown = result["histogram"]
    blocks = []
    for name, shares in shown["shares"].items():
        if shares is None or name == "static":
            continue
        bars = "".join(
            f"<div class='bar'><span>layer {layer}</span><span><i style='width:{100 * share:.1f}%'></i></span>"
            f"<span>{100 * share:.1f} %</span></div>"
            for layer, share in zip(result["layers"], shares, strict=True)
        )
        opened = " open" if name == result["baseline"] else ""
        blocks.append(f"<details{opened}><summary>{escape(name)}</summary>{bars}</details>")
    return f"<h2>Where texts leave at {shown['target']:g}x</h2>" + "".join(blocks)


_RIGHT_SIDE = {
    "single_label_classification": "the logit of the label less the highest other",
    "multi_label_classification": "the lowest of all labels' logits, with the sign turned where a label does not apply "
    "(above 0 the whole set is right)",
    "regression": "the error, the smaller the better",
}
"""How far an answer is on the right side, by problem type, as ``calibration.examples`` measures it."""


def _examples_html(result: Mapping[str, Any], texts: Sequence[str] | None) -> str:
    parts = [_examples_said(result)]
    for kind, said in (("easiest", "Easiest: leave first"), ("hardest", "Hardest: stay longest, furthest from right")):
        rows = []
        for one in result["examples"][kind]:
            text = f"row {one['index']}" if texts is None else texts[one["index"]]
            text = text if len(text) <= 400 else text[:400] + " ..."
            rows.append(
                f"<tr><td class='text'>{escape(text)}</td><td>{one['layer']}</td>"
                f"<td>{escape(_answer(one['label']))}</td>"
                f"<td>{escape(_answer(one['answer']))} ({_verdict(one)})</td></tr>"
            )
        if rows:
            heads = "<tr><th>text</th><th>layer</th><th>label</th><th>answer</th></tr>"
            parts.append(f"<h3>{said}</h3><div class='scroll'><table>{heads}{''.join(rows)}</table></div>")
    return "".join(parts)


def _examples_said(result: Mapping[str, Any]) -> str:
    """Heading, and what easy and hard mean here."""
    by = result["examples"]["by"]
    if by is None:
        return ""
    return (
        f"<h2>Easiest and hardest texts</h2><p class='soft'>By where {escape(by)} lets them leave at "
        f"{result['histogram']['target']:g}x (median of the splits); at the same layer by how far the answer is on the "
        f"right side: {escape(_RIGHT_SIDE[result['problem_type']])}.</p>"
    )


def _answer(said: str | float | Sequence[str]) -> str:
    """A class, labels or a number, as people read it."""
    if isinstance(said, str):
        return said
    return f"{said:.4g}" if isinstance(said, float) else ", ".join(said) or "(none)"


def _verdict(one: Mapping[str, Any]) -> str:
    if one["error"] is not None:
        return f"off by {one['error']:.4g}"
    return "right" if one["right"] else "wrong"


def _footer_html(result: Mapping[str, Any], notes: Mapping[str, str]) -> str:
    facts = {
        "n": result["n"],
        "splits": result["splits"],
        "seed": result["seed"],
        "bootstrap resamples": result["resamples"],
        "runtime": f"{result['runtime']}, batch size {result['batch_size']}, {result['dtype']}",
        "weights": result["model"] or "not recorded",
        **{f"{name} version": value for name, value in result["versions"].items()},
        **notes,
    }
    shown = " · ".join(f"{escape(str(name))}: {escape(str(value))}" for name, value in facts.items())
    return f"<footer>{shown}</footer>"
