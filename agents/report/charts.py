"""Charts: learning curves as inline SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 380, 210
LEFT, RIGHT, TOP, BOTTOM = 46, 12, 12, 26
SMOOTHED_FROM = 12
"""Curves of so many points get a moving average; the raw values stay behind it, faint."""

Point = tuple[float, float]
Place = Callable[[float, float], tuple[float, float]]
"""(x, y) of the data to (right, down) in the drawing."""


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value with its 95 % interval, at x."""

    x: float
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Chart:
    """One curve over iterations, with intervals where there are any.

    Attributes:
        title: above the chart.
        points: (iteration, value), in order; values are finite.
        intervals: evaluation points.
        legend: what the intervals are.
        unit: of the y axis.
        bounds: the y axis covers at least these.
    """

    title: str
    points: Sequence[Point]
    intervals: Sequence[Interval] = ()
    legend: str = ""
    unit: str = ""
    bounds: tuple[float, float] | None = None


def chart_html(chart: Chart, last_x: float) -> str:
    """The chart as a `<figure>`; `last_x` is the right end of the x axis, shared by all charts."""
    values = [y for _, y in chart.points]
    for i in chart.intervals:
        values += [i.low, i.high]
    if not values:
        return ""
    low, high = _range(values, chart.bounds)
    ticks = nice_ticks(low, high)
    low, high = min(low, ticks[0]), max(high, ticks[-1])
    span_x = max(last_x, 1.0)

    def at(x: float, y: float) -> tuple[float, float]:
        right = LEFT + (WIDTH - LEFT - RIGHT) * x / span_x
        down = TOP + (HEIGHT - TOP - BOTTOM) * (high - y) / (high - low)
        return round(right, 1), round(down, 1)

    parts = [_axes(ticks, nice_ticks(0, span_x, whole=True), at)]
    smooth = moving_average(chart.points) if len(chart.points) >= SMOOTHED_FROM else ()
    parts.append(_path(chart.points, at, "raw" if smooth else "line"))
    if smooth:
        parts.append(_path(smooth, at, "line"))
    if len(chart.points) == 1:
        x, y = at(*chart.points[0])
        parts.append(f'<circle class="dot" cx="{x}" cy="{y}" r="3"/>')
    parts += [_whisker(i, at) for i in chart.intervals]
    data = {
        "points": [[x, _short(y)] for x, y in chart.points],
        "intervals": [
            [i.x, f"{_short(i.value)} [{_short(i.low)}, {_short(i.high)}]"] for i in chart.intervals
        ],
        "legend": chart.legend,
        "left": LEFT,
        "right": WIDTH - RIGHT,
        "span": span_x,
    }
    last = f"<b>{_short(chart.points[-1][1])}</b>" if chart.points else ""
    unit = f" <small>{escape(chart.unit)}</small>" if chart.unit else ""
    key = (
        f'<p class="key"><i class="mark"></i>{escape(chart.legend)}</p>' if chart.intervals else ""
    )
    return (
        f'<figure class="chart"><figcaption>{escape(chart.title)}{unit}{last}</figcaption>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(chart.title)}" '
        f'data-chart="{escape(json.dumps(data))}">{"".join(parts)}'
        f'<line class="cursor" y1="{TOP}" y2="{HEIGHT - BOTTOM}" x1="0" x2="0"/></svg>'
        f"{key}</figure>"
    )


def nice_ticks(low: float, high: float, *, whole: bool = False, wanted: int = 4) -> list[float]:
    """Round numbers that cover [low, high] in about `wanted` steps of 1, 2 or 5 times 10^n."""
    rough = max(high - low, 1e-12) / wanted
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(s * power for s in (1, 2, 5, 10) if s * power >= rough * 0.999)
    if whole:
        step = max(1.0, step)
        return [i * step for i in range(int(high / step + 1e-9) + 1)]
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def moving_average(points: Sequence[Point]) -> list[Point]:
    """Mean over about a tenth of the curve around each point; at the ends, over what there is."""
    reach = max(2, len(points) // 20)
    smooth = []
    for i, (x, _) in enumerate(points):
        window = [y for _, y in points[max(0, i - reach) : i + reach + 1]]
        smooth.append((x, sum(window) / len(window)))
    return smooth


def _range(values: Sequence[float], bounds: tuple[float, float] | None) -> tuple[float, float]:
    low, high = min(values), max(values)
    if bounds is not None:
        low, high = min(low, bounds[0]), max(high, bounds[1])
    if high - low < 1e-9:
        low, high = low - 0.5 * max(abs(low), 0.1), high + 0.5 * max(abs(high), 0.1)
    return low, high


def _axes(ys: Sequence[float], xs: Sequence[float], at: Place) -> str:
    parts = []
    for y in ys:
        _, down = at(0, y)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{down}" y2="{down}"/>'
            f'<text class="tick" x="{LEFT - 6}" y="{down + 3.5}" text-anchor="end">'
            f"{_tick(y, ys)}</text>"
        )
    for x in xs:
        right, _ = at(x, 0)
        parts.append(
            f'<text class="tick" x="{right}" y="{HEIGHT - 8}" text-anchor="middle">'
            f"{_tick(x, xs)}</text>"
        )
    return "".join(parts)


def _path(points: Sequence[Point], at: Place, kind: str) -> str:
    if len(points) < 2:
        return ""
    return f'<path class="{kind}" d="M{"L".join("{} {}".format(*at(x, y)) for x, y in points)}"/>'


def _whisker(interval: Interval, at: Place) -> str:
    x, y = at(interval.x, interval.value)
    _, top = at(interval.x, interval.high)
    _, bottom = at(interval.x, interval.low)
    return (
        f'<path class="whisker" d="M{x} {top}V{bottom}M{x - 4} {top}h8M{x - 4} {bottom}h8"/>'
        f'<circle class="mark" cx="{x}" cy="{y}" r="4"/>'
    )


def _tick(value: float, ticks: Sequence[float]) -> str:
    """With as many digits as tell neighbouring ticks apart."""
    step = ticks[1] - ticks[0] if len(ticks) > 1 else 1.0
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    if decimals > 5 or abs(value) >= 1e5:
        return _short(value)
    return f"{value:.{decimals}f}" if value else "0"


def _short(value: float) -> str:
    """At most four significant digits."""
    if value == 0:
        return "0"
    if abs(value) >= 10_000 or abs(value) < 0.001:
        return f"{value:.2g}".replace("e-0", "e-").replace("e+0", "e")
    return f"{value:.4g}"
