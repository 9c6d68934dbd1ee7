"""The page of a suite's numbers: a section for each union of tasks, then one a task.

The same numbers always give the same page.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from offramp.bench.significance import LEVEL
from offramp.bench.suite_plots import figures
from offramp.errors import OfframpError

__all__ = ["as_markdown", "faster", "replace_block"]


def as_markdown(
    numbers: Mapping[str, Any], *, pictures: str | None = None, command: str = "offramp compare --suite"
) -> str:
    """The page's tables: means over tasks, a section a task, what was not run, and the papers of the numbers.

    Args:
        numbers: of ``suite_tables.compute``.
        pictures: folder of the plots as the page sees it; None: no plots.
        command: what wrote them.
    """
    done = [task for task in numbers["tasks"] if task["rows"]]
    lines = []
    if pictures is not None and done:
        lines += [f"![score against layer speed-up, a panel a task]({pictures}/{name})" for name in figures(numbers)]
        lines.append("")
    for union in numbers["unions"]:
        lines += [*_union(union, numbers), ""]
    for task in done:
        lines += [*_section(task, numbers), ""]
    never = [task for task in numbers["tasks"] if not task["rows"]]
    if never:
        lines += ["### Tasks not run", ""]
        lines += [f"- {task['task']}: {'; '.join(_reasons(task))}" for task in never]
        lines.append("")
    return "\n".join([*lines, _origin(numbers, command)])


def _union(union: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[str]:
    """Means over tasks: scores, and gaps with those in bold that stand Holm's correction."""
    targets = numbers["targets"]
    heads = " | ".join(f"{target:g}x" for target in targets)
    gap_heads = " | ".join(f"won at {target:g}x" for target in targets)
    seeds = ", ".join(map(str, union["seeds"]))
    lines = [
        f"### Mean over {', '.join(union['tasks'])}",
        "",
        f"{_metrics(union['tasks'], numbers)} x 100, seed {seeds} of every row. In the last columns points won or lost "
        f"against {_reference(union['against'])} on the same trained model (paired; 95 % intervals over dev rows of "
        f"these tasks), bold where clear of zero at {LEVEL:.0%} after Holm's correction over this table.",
        "",
        f"| | leaves by | full depth | {heads} | area | {gap_heads} |",
        "|---|---|---|" + "---|" * (2 * len(targets) + 1),
    ]
    for row in union["rows"]:
        if row["kind"] == "oracle":
            continue  # its speed differs from task to task
        scores = " | ".join(_score_of(row, *pair) for pair in zip(row["cells"], targets, strict=True))
        gaps = " | ".join(_tested(cell) for cell in row["cells"])
        full = "" if row["kind"] in ("entropy", "static") else _mean(row["full_depth"])
        lines.append(f"| {row['name']} | {row['criterion']} | {full} | {scores} | {_mean(row['area'])} | {gaps} |")
    return lines


def _metrics(names: Sequence[str], numbers: Mapping[str, Any]) -> str:
    """Each metric, with the tasks it is of where there are several."""
    by_metric: dict[str, list[str]] = {}
    for task in numbers["tasks"]:
        if task["task"] in names:
            by_metric.setdefault(task["metric"], []).append(task["task"])
    if len(by_metric) == 1:
        return next(iter(by_metric))
    return ", ".join(f"{metric} ({', '.join(tasks)})" for metric, tasks in by_metric.items())


def _score_of(row: Mapping[str, Any], cell: Mapping[str, Any] | None, target: float) -> str:
    if row["kind"] == "plain":
        return ""
    return _mean(cell["score"]) + faster(cell, target) if cell else _lacking(row)


def faster(cell: Mapping[str, Any], target: float) -> str:
    """The speed-up where more layers than the budget's were worth nothing."""
    return f" at {cell['layer_speedup']:.1f}x" if cell["layer_speedup"] > 1.03 * target else ""


def _lacking(row: Mapping[str, Any]) -> str:
    """In place of a score."""
    return "not run" if row["kind"] == "layers" else "not reached"


def _mean(number: Mapping[str, Any] | None) -> str:
    return "" if number is None else f"{100 * number['mean']:.1f}"


def _tested(cell: Mapping[str, Any] | None) -> str:
    if cell is None or cell["gap"] is None or "corrected" not in cell["gap"]:
        return ""
    text = _gap(cell)
    return f"**{text}**" if cell["gap"]["corrected"] < LEVEL else text


def _section(task: Mapping[str, Any], numbers: Mapping[str, Any]) -> list[str]:
    targets = numbers["targets"]
    heads = " | ".join(f"{target:g}x" for target in targets)
    lines = [
        f"### {task['task']}",
        "",
        f"{task['metric']} x 100 on {task['n']:,} dev rows, {task['train_rows']:,} training rows; at layer speed-ups.",
        "",
        f"| | leaves by | seeds | full depth | {heads} | area |",
        "|---|---|---|---|" + "---|" * len(targets) + "---|",
    ]
    for row in task["rows"]:
        cells = " | ".join(_shown(row, place, target) for place, target in enumerate(targets))
        full = "" if row["kind"] in ("entropy", "static", "oracle") else _text(row["full_depth"])
        lines.append(
            f"| {row['name']} | {row['criterion']} | {len(row['seeds'])} | {full} | {cells} | {_text(row['area'])} |"
        )
    compared = [row for row in task["rows"] if any(cell and cell["gap"] for cell in row["cells"])]
    others = [row for row in compared if not _is_reference(row, task["against"])]
    if others:
        reference = _reference(task["against"])
        lines += ["", f"Points won or lost against {reference} on the same trained model (paired):", ""]
        lines += [f"| | {heads} |", "|---|" + "---|" * len(targets)]
        lines += [f"| {row['name']} | {' | '.join(_gap(cell) for cell in row['cells'])} |" for row in others]
    if task["not_run"]:
        lines += ["", f"Not run: {'; '.join(_reasons(task))}."]
    return lines


def _reference(against: str | None) -> str:
    return "entropy" if against == "entropy" else "the best static exit"


def _is_reference(row: Mapping[str, Any], against: str | None) -> bool:
    """The row that gaps are taken against, compared with itself."""
    gaps = [cell["gap"] for cell in row["cells"] if cell and cell["gap"]]
    return row["criterion"] == against and all(gap["mean"] == 0 and gap["interval"] == [0, 0] for gap in gaps)


def _shown(row: Mapping[str, Any], place: int, target: float) -> str:
    if row["kind"] == "plain":
        return ""
    if row["kind"] == "oracle":
        best = row["curve"][0]
        return "" if place else f"{_text(best['score'])} at {best['layer_speedup']:.1f}x"
    cell = row["cells"][place]
    return _lacking(row) if cell is None else _text(cell["score"]) + faster(cell, target)


def _text(number: Mapping[str, Any] | None) -> str:
    if number is None:
        return ""
    text = f"{100 * number['mean']:.1f}"
    if number["se"] is not None:
        text += f" ± {100 * number['se']:.1f}"
    if number["interval"] is not None:
        low, high = number["interval"]
        text += f" [{100 * low:.1f}, {100 * high:.1f}]"
    return text


def _gap(cell: Mapping[str, Any] | None) -> str:
    if cell is None:
        return "not reached"
    if cell["gap"] is None:
        return ""
    gap = cell["gap"]
    spread = "" if gap["se"] is None else f" ± {100 * gap['se']:.1f}"
    low, high = gap["interval"]
    return f"{100 * gap['mean']:+.1f}{spread} [{100 * low:+.1f}, {100 * high:+.1f}]"


def _reasons(task: Mapping[str, Any]) -> list[str]:
    """Reasons with the recipes they hold for."""
    by_reason: dict[str, list[str]] = {}
    for one in task["not_run"]:
        seeds = f" (seed {', '.join(map(str, one['seeds']))})" if any(one["seeds"]) else ""
        by_reason.setdefault(one["reason"].rstrip("."), []).append(f"{one['recipe']}{seeds}")
    if not task["rows"] and len(by_reason) == 1:
        return list(by_reason)
    return [f"{', '.join(recipes)}: {reason}" for reason, recipes in by_reason.items()]


def _origin(numbers: Mapping[str, Any], command: str) -> str:
    """The papers of the numbers, in a line."""
    commits = ", ".join(commit[:12] for commit in numbers["trained_at"]) or "nothing yet"
    encoder = f"{numbers['encoder']} ({', '.join(found[:12] for found in numbers['encoder_hash'])})"
    versions = ", ".join(f"{name} {' and '.join(found)}" for name, found in numbers["trained_with"].items() if found)
    return (
        f"<sub>`{command}`: {encoder}; trained at commit {commits}"
        f"{'; ' + versions if versions else ''}; {numbers['splits']} splits, {numbers['resamples']:,} resamples, "
        "95 % intervals over dev rows, ± standard error over seeds.</sub>"
    )


def replace_block(page: str, name: str, text: str) -> str:
    """The page with what stands between ``<!-- NAME:begin -->`` and ``<!-- NAME:end -->`` replaced.

    Raises:
        OfframpError: the page has no such block.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    pattern = re.compile(re.escape(begin) + r".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(page):
        raise OfframpError(f"the page has no block {name}: write {begin} and {end} where the tables belong")
    return pattern.sub(lambda _: f"{begin}\n{text}\n{end}", page)
