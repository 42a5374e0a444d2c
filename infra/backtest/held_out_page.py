"""The report of a leave-one-out backtest as one page."""

from __future__ import annotations

from html import escape

from infra.backtest.held_out_report import METRICS
from infra.backtest.page import Json, html_table, interval, number, order_section, page, recommenders_section
from models.evaluation.comparison import short


def render_held_out(report: Json) -> str:
    """HTML of `infra.backtest.held_out_report.build_held_out`'s document."""
    parts = [*_protocol(report), *_figures(report), *order_section(report["order"]), *recommenders_section(report)]
    return page(report["protocol"]["log"], parts)


def _protocol(report: Json) -> list[str]:
    facts, order = report["protocol"], report["settings_by"]
    defaults = "those of a log in order" if order["sequential"] else "the served defaults"
    found = f"{number(order['in_order'])} in order, {number(order['shuffled'])} shuffled"
    rows = [
        ("log", escape(facts["log"])),
        ("protocol", "leave one out: of each user the last watch is the test, the one before it validation"),
        ("users, items, watches", f"{facts['users']:,}, {facts['items']:,}, {facts['watches']:,}"),
        ("learnt from, for validation", f"{facts['learnt_from']:,}, {facts['validation']:,}"),
        ("cases", f"{facts['cases']:,}; {facts['repeats']:,} more were repeats, which are no cases"),
        (
            "settings that nobody has set",
            f"{defaults}: on validation a sequence model's recall@{order['k']} is {found}",
        ),
        ("seeds", ", ".join(map(str, facts["seeds"]))),
    ]
    rows += [(f"stands aside: {escape(what)}", escape(why)) for what, why in report["stands_aside"].items()]
    return [
        "<h2>How it was measured</h2>",
        html_table(["", ""], rows, text_columns=(1,)),
        "<p>The log has an order and no times, and none were made up. Models learn from what is before the validation"
        " watch and are asked with it in the history; settings are chosen on validation. <b>All items of the log are"
        " ranked, those already watched left out.</b> Equal scores share the middle rank. Since users' watches overlap"
        " in time, a model learns from what came later: these figures compare models, and promise nothing of a live"
        " system.</p>",
    ]


def _figures(report: Json) -> list[str]:
    rows = [
        [escape(name), *(_cell(by_metric[metric]) for metric in METRICS)]
        for name, by_metric in report["figures"].items()
    ]
    differences = [
        [f"{escape(each['ours'])} &minus; {escape(each['theirs'])}", interval(each)] for each in report["differences"]
    ]
    return [
        "<h2>Each user's last watch</h2><p>In brackets the standard error over users; behind &plusmn; the standard"
        " deviation between seeds.</p>",
        html_table(["", *METRICS], rows, first_is_ours=True),
        "<h3>Paired differences in recall@10</h3><p>With 95 % intervals; bold where the interval leaves out zero.</p>",
        html_table(["", "at 10"], differences),
    ]


def _cell(estimate: Json) -> str:
    between = "" if estimate["between_seeds"] is None else f" &plusmn; {short(estimate['between_seeds'])}"
    return number(estimate) + between
