"""The report of a backtest as one page: tables, and curves as inline SVG. No script, nothing fetched from elsewhere."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

from infra.backtest.curves import draw_curves
from models.evaluation.comparison import short, signed
from models.evaluation.split import iso

Json = dict[str, Any]

CUTOFFS = ("10", "50", "100", "500")
MEANS = ("mean_reciprocal_rank", "mean_log2_rank")
SHOWN = ("coverage", "share_from_top_1_percent", "mean_log_share")
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1a1a1a; background: #fff; max-width: 70rem; margin: 2rem auto;
       padding: 0 1rem }
table { border-collapse: collapse; margin: .5rem 0 1.5rem; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .8rem .15rem 0; text-align: right; vertical-align: top; border-bottom: 1px solid #ddd }
th:first-child, td:first-child, td.text { text-align: left }
td.text { max-width: 36rem } .quiet { color: #666 } td.ours { font-weight: 600 } figure { margin: 0 0 1rem }
svg { max-width: 100%; height: auto }
"""


def render_page(report: Json) -> str:
    """HTML of `infra.backtest.report.build_report`'s document."""
    parts = [
        *_protocol(report),
        *_walk("Frozen: everyone is asked once, at the cut", report["frozen"]),
        *_figures("Frozen: users without a watch before the cut, asked for their first", report["cold"]),
    ]
    if report["live"] is not None:
        parts += _walk("Live: each watch is ranked, then learnt", report["live"])
    parts += _figures("What each part of ours earns: the same model, one part left out", report["parts"])
    parts += [*order_section(report["order"]), *recommenders_section(report)]
    return page(report["protocol"]["log"], parts)


def page(log: str, parts: Iterable[str]) -> str:
    """One file that fetches nothing and runs nothing."""
    head = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'><title>Backtest</title>",
        f"<style>{STYLE}</style></head><body><h1>Backtest of {escape(log)}</h1>",
    ]
    return "\n".join([*head, *parts, "</body></html>"]) + "\n"


def order_section(order: Json) -> list[str]:
    """The test of order: what a sequence model loses when each user's watches are shuffled."""
    cells = [number(order["in_order"]), number(order["shuffled"]), interval(order["difference"])]
    note = "A sequence model (items that were watched soon after each other, the newest watch of a history most) learnt"
    note += " and asked with each user's watches as they were, and in random order. What is lost is what order tells."
    return [
        f"<h2>Does order tell anything?</h2><p>{note} <b>{escape(order['advice'])}</b></p>",
        html_table([f"recall at {order['k']}", "in order", "shuffled", "difference"], [["", *cells]]),
    ]


def _protocol(report: Json) -> list[str]:
    facts = report["protocol"]
    rows = [
        ("log", escape(facts["log"])),
        ("catalogue", escape(facts["items_file"] or "none given: items are those of the log")),
        ("cut", f"{iso(facts['cut_ms'])}; the log runs from {iso(facts['first_ms'])} to {iso(facts['last_ms'])}"),
        ("positives before the cut", f"{facts['positives_before']:,} of {facts['users_before']:,} users"),
        ("of them for validation", f"{facts['validation_positives']:,}, from {iso(facts['validation_ms'])}"),
        ("positives after the cut", f"{facts['test_positives']:,}"),
        ("items known at the cut", f"{facts['items_known']:,} of {facts['items']:,}: all of them are ranked"),
        ("seed", f"{facts['seed']}"),
    ]
    if facts["live"]:
        rows.append(("live block", f"{facts['block']:,} positives are ranked, then learnt"))
    return [
        "<h2>How it was measured</h2>",
        html_table(["", ""], rows, text_columns=(1,)),
        "<p>A positive is a completed watch. Every recommender sees only what is before the cut, settings are chosen on"
        " the validation part, and all are judged on the same cases: what a user with at least one positive behind them"
        " watched next that they had not watched before (and, in a table of their own, what users without one watched"
        " first), ranked among all items known at the cut, those already watched"
        " left out. <b>An item that was not known at the cut counts as a miss.</b> Repeats are no cases. Equal scores"
        " share the middle rank. Standard errors are in brackets; where a user has several cases they are errors over"
        " users. Intervals are 95 %.</p>",
    ]


def _walk(title: str, walk: Json) -> list[str]:
    return [
        *_figures(title, walk),
        *(f"<figure>{svg}</figure>" for svg in draw_curves(walk)),
        *_shown(walk["shown"]),
    ]


def _figures(title: str, walk: Json) -> list[str]:
    n = f"{walk['cases']:,} cases of {walk['users']:,} users, {walk['unknown_items']:,} of them of unknown items"
    header = ["recall at", *CUTOFFS, "mean reciprocal rank", "mean log2 rank"]
    rows = [
        [escape(name), *(number(each) for each in (*map(at_k.get, CUTOFFS), *(walk[mean][name] for mean in MEANS)))]
        for name, at_k in walk["recall"].items()
    ]
    return [
        f"<h2>{title}</h2><p>{n}.</p>",
        html_table(header, rows, first_is_ours=True),
        *_differences(walk["differences"]),
    ]


def _differences(differences: list[Json]) -> list[str]:
    if not differences:
        return []
    by_pair: dict[tuple[str, str], dict[str, Json]] = {}
    for each in differences:
        by_pair.setdefault((each["ours"], each["theirs"]), {})[str(each["k"])] = each
    rows = [
        [f"{escape(ours)} &minus; {escape(theirs)}", *(interval(at_k[k]) for k in CUTOFFS)]
        for (ours, theirs), at_k in by_pair.items()
    ]
    note = "Differences on the same cases, with 95 % intervals; bold where the interval leaves out zero."
    return [f"<h3>Paired differences in recall</h3><p>{note}</p>", html_table(["at", *CUTOFFS], rows)]


def interval(each: Json) -> str:
    if each["low"] is None:
        return f"{signed(each['value'])} <span class='quiet'>(no interval)</span>" if each["n"] else "&ndash;"
    text = f"{signed(each['value'])} <span class='quiet'>[{signed(each['low'])}, {signed(each['high'])}]</span>"
    return f"<b>{text}</b>" if each["significant"] else text


def _shown(shown: Json) -> list[str]:
    if not shown:
        return []
    header = ["of the first 10 and 100", "catalogue covered", "", "from the top 1 % of items", "", "mean log share", ""]
    rows = [
        [escape(name), *(number(at_k[k][metric]) for metric in SHOWN for k in ("10", "100"))]
        for name, at_k in shown.items()
    ]
    note = "Share of the catalogue in anybody's list; how much of a list is among the items most watched before the cut"
    note += "; the mean log of their share of the watches."
    return [f"<h3>What is recommended</h3><p>{note}</p>", html_table(header, rows, first_is_ours=True)]


def recommenders_section(report: Json) -> list[str]:
    rows = [
        [escape(each["name"]), escape(_settings(each["settings"])), escape(each["note"])]
        for each in report["recommenders"]
    ]
    rows += [[escape(each["name"]), "left out", escape(each["why"])] for each in report["left_out"]]
    tried = [
        [escape(each["name"]), escape(_settings(one["settings"])), number(one["mean_log2_rank"])]
        for each in report["recommenders"]
        for one in each["tried"]
    ]
    chosen = "Settings were chosen by the lowest mean log2 rank in the validation part."
    return [
        "<h2>Recommenders</h2>",
        html_table(["", "settings", "note"], rows, text_columns=(1, 2)),
        f"<h3>Settings tried</h3><p>{chosen}</p>",
        html_table(["", "settings", "mean log2 rank"], tried, text_columns=(1,)),
    ]


def _settings(settings: Json) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in settings.items()) or "none"


def number(estimate: Json) -> str:
    if estimate["value"] is None:
        return "&ndash;"
    error = "" if estimate["se"] is None else f" <span class='quiet'>({short(estimate['se'])})</span>"
    return f"<span title='n = {estimate['n']:,}'>{short(estimate['value'])}</span>{error}"


def html_table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    text_columns: Sequence[int] = (),
    first_is_ours: bool = False,
) -> str:
    """Cells are HTML already."""
    lines = ["<table><thead><tr>", *(f"<th>{cell}</th>" for cell in header), "</tr></thead><tbody>"]
    for place, row in enumerate(rows):
        ours = " ours" if first_is_ours and place == 0 else ""
        cells = (f"<td class='{'text' if at in text_columns else ''}{ours}'>{cell}</td>" for at, cell in enumerate(row))
        lines.append(f"<tr>{''.join(cells)}</tr>")
    return "".join([*lines, "</tbody></table>"])
