"""The curves of a backtest's report, as SVG that stands in the page: recall by k, item age, history length and time."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Json = dict[str, Any]

COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6d31", "#999999")
LOOK: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "nextwatch", "font.size": 9.0}
LOOK |= {"axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.3}
UNDATED = {"Date": None, "Creator": None, "Format": None, "Type": None}
SIZE = (10.0, 3.6)
CROWDED = 7  # more labels than this are slanted, and n is left to report.json
UNITS = ((86_400, "d"), (3600, "h"), (60, "min"), (1, "s"))


def draw_curves(walk: Json) -> list[str]:
    """SVG documents of a walk's part of the report."""
    if not walk["cases"]:
        return []
    with matplotlib.rc_context(LOOK):
        figures = [
            _figure([("recall by k", partial(_by_k, recall=walk["recall"]))]),
            _slices("item age", walk["by_item_age_s"], age_label),
            _slices("watches before", walk["by_history"], history_label),
            _slices("time", walk["by_time_ms"], time_label),
        ]
        if walk["shown"]:
            titles = {"coverage": "catalogue covered", "share_from_top_1_percent": "share from the top 1 % of items"}
            panels = ((title, partial(_shown, shown=walk["shown"], metric=name)) for name, title in titles.items())
            figures.append(_figure(panels))
        return [_svg(figure) for figure in figures]


def age_label(part: Json) -> str:
    """ "3-5 h": the unit is that of the upper end."""
    size, unit = next((u for u in UNITS if part["high"] is not None and part["high"] >= u[0]), UNITS[-1])
    low, high = part["low"] / size, (part["high"] or 0) / size
    return f"{low:.3g}-{high:.3g} {unit}"


def history_label(part: Json) -> str:
    low, high = int(part["low"]), part["high"]
    if high is None:
        return f"{low}+"
    return f"{low}" if high - low == 1 else f"{low}-{int(high) - 1}"


def time_label(part: Json) -> str:
    return datetime.fromtimestamp(part["low"] / 1000, UTC).strftime("%d %b %H:%M")


def _figure(panels: Iterable[tuple[str, Callable[[Axes], None]]]) -> Figure:
    panels = list(panels)
    figure = Figure(figsize=SIZE, layout="constrained")
    for axes, (title, draw) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        draw(axes)
        axes.set_title(title, loc="left")
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False)
    return figure


def _slices(what: str, by_name: Json, label: Callable[[Json], str]) -> Figure:
    """A panel for each k that was sliced."""
    cutoffs = list(next(iter(by_name.values())))
    draw = partial(_by_slice, by_name=by_name, label=label)
    return _figure((f"recall at {k} by {what}", partial(draw, k=k)) for k in cutoffs)


def _by_k(axes: Axes, *, recall: Json) -> None:
    ks = sorted(int(k) for k in next(iter(recall.values())))
    _lines(axes, ks, {name: [at_k[str(k)] for k in ks] for name, at_k in recall.items()})
    axes.set_xscale("log")
    axes.set_xticks(ks, [f"{k}" for k in ks])
    axes.set_xticks([], minor=True)


def _by_slice(axes: Axes, *, by_name: Json, k: str, label: Callable[[Json], str]) -> None:
    slices = {name: at_k[k] for name, at_k in by_name.items()}
    parts = list(slices.values())[-1]
    _lines(axes, range(len(parts)), slices)
    crowded = len(parts) > CROWDED
    labels = [label(part) if crowded else f"{label(part)}\nn {part['n']:,}" for part in parts]
    axes.set_xticks(range(len(parts)), labels, fontsize=7, rotation=45 if crowded else 0)


def _shown(axes: Axes, *, shown: Json, metric: str) -> None:
    depths = list(next(iter(shown.values())))
    _lines(axes, range(len(depths)), {name: [at_k[k][metric] for k in depths] for name, at_k in shown.items()})
    axes.set_xticks(range(len(depths)), [f"first {k}" for k in depths])


def _lines(axes: Axes, at: Sequence[int], by_name: dict[str, list[Json]]) -> None:
    """A line with error bars for each recommender's estimates. The first is ours: black and thick."""
    for place, (name, estimates) in enumerate(by_name.items()):
        values, errors = [each["value"] for each in estimates], [each["se"] or 0.0 for each in estimates]
        look: Json = {"color": COLOURS[place % len(COLOURS)], "linewidth": 1.1, "zorder": 2}
        if place == 0:
            look |= {"linewidth": 2.2, "zorder": 3}
        axes.errorbar(at, values, errors, label=name, marker="o", markersize=3, elinewidth=0.7, **look)


def _svg(figure: Figure) -> str:
    written = io.StringIO()
    figure.savefig(written, format="svg", metadata=UNDATED)
    text = written.getvalue()
    return text[text.index("<svg") :]  # without the XML header and its reference to a DTD
