"""Page: the report of a run as one HTML file, with no reference to anything outside it."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from turnwise.agents.report.charts import Chart, Interval, chart_html
from turnwise.agents.report.episodes import LEVELS, advantage_scale, episodes_html, kind_of, visible

Row = Mapping[str, Any]

ROUNDING = 1e-9
"""A curve that stays below this shows rounding: the KL of a single on-policy step is one."""

CHARTS = (
    ("success", "Success", "share of episodes", (0.0, 1.0)),
    ("reward_per_turn", "Reward per turn", "", None),
    ("entropy", "Entropy", "nats per token", None),
    ("kl", "KL", "to the sampling policy, nats", None),
    ("tokens_per_s", "Throughput", "sampled tokens per second", None),
    ("turns", "Turns", "per episode", None),
)
"""Column of a metrics row, title, unit, and what the axis covers at least."""


def write_report(
    path: str | Path,
    *,
    title: str,
    config: Mapping[str, Any],
    metrics: Sequence[Row],
    episodes: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Row] = (),
    facts: Mapping[str, str] | None = None,
) -> Path:
    """Write the page.

    Args:
        path: of the HTML file.
        title: of the run.
        config: what the run was asked to do, for the table of settings.
        metrics: one row for each iteration, with `iteration` and any of the columns of `CHARTS`.
        episodes: from `episode_record`.
        evaluations: rows with `iteration`, `success` and `success_ci95`.
        facts: name to text, for the header.

    Returns:
        The path.
    """
    target = Path(path)
    target.write_text(
        page_html(
            title=title,
            config=config,
            metrics=metrics,
            episodes=episodes,
            evaluations=evaluations,
            facts=facts or {},
        ),
        encoding="utf-8",
    )
    return target


def page_html(
    *,
    title: str,
    config: Mapping[str, Any],
    metrics: Sequence[Row],
    episodes: Sequence[Mapping[str, Any]],
    evaluations: Sequence[Row],
    facts: Mapping[str, str],
) -> str:
    """The page as text; see `write_report`."""
    style, script = _part("report.css"), _part("report.js")
    # The page runs its own script and style, by their hashes, and nothing that an episode says.
    policy = f"default-src 'none'; style-src {_hash(style)}; script-src {_hash(script)}"
    body = [
        f"<header class=top><p class=brand>Turnwise</p><h1>{visible(title)}</h1>",
        _headline(evaluations),
        _facts(facts),
        "</header>",
        _curves(metrics, evaluations),
        _episodes(episodes),
        _settings(config),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{visible(title)}</title><style>{style}</style></head>\n"
        f"<body><main>{''.join(body)}</main>"
        f'<div id="tip" role="tooltip" hidden></div><script>{script}</script></body></html>\n'
    )


def _headline(evaluations: Sequence[Row]) -> str:
    """Held-out success before and after."""
    measured = [e for e in evaluations if e.get("success") is not None]
    if not measured:
        return ""
    first, last = measured[0], measured[-1]
    parts = [_rate(last, "after" if len(measured) > 1 else f"iteration {last['iteration']}")]
    if len(measured) > 1:
        parts = [_rate(first, "before"), '<span class="arrow">→</span>', *parts]
    tasks = last.get("tasks")
    over = f" on {tasks} tasks" if tasks else ""
    return (
        f'<div class="headline"><p class="dim">Success{over} with 95 % interval</p>'
        f'<div class="rates">{"".join(parts)}</div></div>'
    )


def _rate(row: Row, when: str) -> str:
    low, high = row["success_ci95"]
    return (
        f'<div class="rate"><b>{row["success"]:.2f}</b>'
        f"<span>{low:.2f} to {high:.2f}</span><small>{when}</small></div>"
    )


def _facts(facts: Mapping[str, str]) -> str:
    if not facts:
        return ""
    items = "".join(
        f"<div><dt>{visible(name)}</dt><dd>{visible(value)}</dd></div>"
        for name, value in facts.items()
    )
    return f'<dl class="facts">{items}</dl>'


def _curves(metrics: Sequence[Row], evaluations: Sequence[Row]) -> str:
    intervals = [
        Interval(float(e["iteration"]), float(e["success"]), *map(float, e["success_ci95"]))
        for e in evaluations
        if e.get("success") is not None
    ]
    last = max([float(r["iteration"]) for r in (*metrics, *evaluations)], default=0.0)
    figures = []
    for column, title, unit, bounds in CHARTS:
        points = [
            (float(r["iteration"]), float(r[column]))
            for r in metrics
            if r.get(column) is not None and math.isfinite(r[column])
        ]
        if points and max(abs(y) for _, y in points) < ROUNDING and bounds is None:
            continue
        held_out = intervals if column == "success" else ()
        legend = "evaluation, 95 % interval" if held_out else ""
        chart = Chart(title, points, held_out, legend, unit, bounds)
        figures.append(chart_html(chart, last))
    if not any(figures):
        return ""
    return (
        f'<section><h2>Learning curves</h2><div class="charts">{"".join(figures)}</div></section>'
    )


def _episodes(episodes: Sequence[Mapping[str, Any]]) -> str:
    if not episodes:
        return ""
    kinds = [kind_of(e) for e in episodes]
    counts = {"all": len(kinds), **{k: kinds.count(k) for k in ("correct", "wrong", "failed")}}
    buttons = "".join(
        f'<button type="button" data-filter="{kind}" aria-pressed="{str(kind == "all").lower()}">'
        f"{kind} <small>{count}</small></button>"
        for kind, count in counts.items()
    )
    fold = (
        '<button type="button" data-fold="open">open all</button>'
        '<button type="button" data-fold="">close all</button>'
    )
    iteration = episodes[0].get("iteration")
    when = "" if iteration is None else f' <span class="dim">of iteration {iteration}</span>'
    return (
        f'<section><h2>Episodes{when}</h2><div class="bar"><div class="buttons">{buttons}</div>'
        f'<div class="buttons">{fold}</div>{_legend(advantage_scale(episodes))}</div>'
        f"{episodes_html(episodes)}</section>"
    )


def _legend(scale: float) -> str:
    shades = (
        [f"n{i}" for i in range(LEVELS, 0, -1)] + ["z"] + [f"p{i}" for i in range(1, LEVELS + 1)]
    )
    boxes = "".join(f'<i class="{shade}"></i>' for shade in shades)
    return (
        f'<div class="legend"><span>advantage</span><span>-{scale:.2g}</span>'
        f'<span class="scale">{boxes}</span><span>+{scale:.2g}</span>'
        '<span class="seen">observation</span></div>'
    )


def _settings(config: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><th>{visible(str(name))}</th><td>{visible(_as_text(value))}</td></tr>"
        for name, value in config.items()
    )
    return (
        '<section><details class="settings"><summary>Settings</summary>'
        f"<table>{rows}</table></details></section>"
    )


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


def _part(name: str) -> str:
    return files("turnwise.agents.report").joinpath(name).read_text("utf-8")


def _hash(text: str) -> str:
    """As a Content-Security-Policy names an inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
