"""Reports: one well-formed page, everything escaped, every token there, nothing from outside."""

import json
import random
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from turnwise.agents.chat import Chat
from turnwise.agents.report import episode_record, write_report
from turnwise.agents.report.charts import Chart, Interval, chart_html, moving_average, nice_ticks
from turnwise.agents.report.episodes import advantage_scale, kind_of, shade, visible
from turnwise.agents.report.records import token_texts
from turnwise.agents.tiny.make import demonstrate
from turnwise.agents.tiny.tokenizer import make_tokenizer
from turnwise.agents.trajectory import Status, Trajectory, Turn
from turnwise.envs.search.search_env import SearchEnv
from turnwise.rewards.verdict import Verdict

VOID = {"meta", "br", "img", "input", "hr", "link", "line", "circle", "path"}
HOSTILE = (
    '</script><script>alert(1)</script><img src="http://evil.example/x" onerror=alert(2)>'
    "<!-- --!> & &amp; \x00\x1b[31m \u202egnp.exe \ud800 ]]> <|end|>\n'\"`"
)


class Page(HTMLParser):
    """Checks nesting and collects what a page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if self.open[-1:] not in (["style"], ["script"]):
            self.text += data

    def tokens(self) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == "span" and "data-t" in attrs]


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    env = SearchEnv(split="train", seed=1)
    texts = [t for i in range(20) for p in demonstrate(env, i, random.Random(i)) for t in p]
    return make_tokenizer(texts, size=512)


def episode(
    tokenizer: Any,
    *,
    group: int = 0,
    action: str = "<search> Bo </search>",
    observation: str = "<information>\nNothing found.\n</information>",
    prompt: str = "Question: who?",
    verdict: Verdict | None = None,
    status: Status = "terminated",
    error: str = "",
) -> Trajectory:
    """Two turns, the second without an observation among the tokens."""
    chat = Chat(tokenizer)
    tokens = chat.opening([{"role": "user", "content": prompt}])
    mask = [False] * len(tokens)
    turns = []
    for index, (act, seen) in enumerate([(action, observation), ("<answer> x </answer>", "")]):
        ids = [*tokenizer.encode(act, add_special_tokens=False), chat.end_of_turn_id]
        start = len(tokens)
        tokens += ids
        mask += [True] * len(ids)
        middle = len(tokens)
        if index == 0:
            given = chat.continuation(seen, closed=True)
            tokens += given
            mask += [False] * len(given)
        info = {"valid": index == 1, "tool": "answer", "error": act} if index else {"valid": False}
        scores = {"information_gain": 0.25} if index == 0 else {}
        spans = (start, middle), (middle, len(tokens))
        turns.append(Turn(index, *spans, act, seen, float(index), scores, info))
    return Trajectory(
        env_id="turnwise/Search-v0",
        task_id=f"task-{group}",
        group=group,
        tokens=np.array(tokens, np.int32),
        logprobs=np.where(mask, -0.5, 0.0).astype(np.float32),
        action_mask=np.array(mask),
        turns=tuple(turns),
        prompt=prompt,
        verdict=verdict,
        status=status,
        error=error,
    )


def advantages(trajectory: Trajectory, value: float) -> Any:
    return np.where(trajectory.action_mask, value, 0.0).astype(np.float32)


def page(tmp_path: Path, episodes: list[dict[str, Any]], **more: Any) -> tuple[str, Page]:
    path = write_report(
        tmp_path / "report.html",
        **{"title": "a run", "config": {"env": "x"}, "metrics": [], "episodes": episodes, **more},
    )
    text = path.read_text("utf-8")
    return text, Page(text)


# ---------------------------------------------------------------------- records


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40))
def test_token_texts_join_to_the_text(tokenizer: Any, text: str) -> None:
    text = text.encode("utf-8", "ignore").decode()
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = token_texts(ids, tokenizer)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def test_bytes_of_one_character_come_together(tokenizer: Any) -> None:
    ids = tokenizer.encode("a🙂b", add_special_tokens=False)
    assert token_texts(ids, tokenizer) == ["a", "", "", "", "🙂", "b"]
    assert token_texts(ids[:3], tokenizer)[0] == "a"  # cut within the character


def test_a_record_is_json_and_keeps_every_token(tokenizer: Any) -> None:
    t = episode(tokenizer, verdict=Verdict(1.0, "correct", {"em": 1.0}))
    record = json.loads(json.dumps(episode_record(t, advantages(t, 0.3), tokenizer, iteration=3)))
    assert record["token_ids"] == t.tokens.tolist()
    assert len(record["token_texts"]) == len(record["logprobs"]) == len(t.tokens)
    assert record["advantages"] == [0.3 if m else 0.0 for m in t.action_mask]
    assert record["turns"][0]["scores"] == {"information_gain": 0.25}
    assert record["iteration"] == 3
    with pytest.raises(ValueError, match="2 advantages for"):
        episode_record(t, np.zeros(2, np.float32), tokenizer)


# ---------------------------------------------------------------------- shades


def test_shades_by_hand() -> None:
    # Scale 3, six shades on either side: 0.5 apart.
    given = [-9.0, -3.0, -1.5, -0.01, 0.0, 0.01, 1.0, 2.9, 50.0, None]
    found = [shade(a, 3.0) for a in given]
    assert found == ["n6", "n6", "n3", "n1", "z", "p1", "p2", "p6", "p6", "z"]


def test_one_outlier_does_not_pale_the_rest() -> None:
    record = {"advantages": [0.0] * 50 + [1.0] * 99 + [1000.0]}
    assert advantage_scale([record]) == pytest.approx(1.0)
    assert advantage_scale([{"advantages": None}]) == 1.0


@pytest.mark.parametrize(
    "status, verdict, outcome, kind",
    [
        ("terminated", "correct", 1, "correct"),
        ("terminated", "wrong", 0, "wrong"),
        ("truncated", "unparsable", 0, "wrong"),
        ("terminated", "crash", 0, "failed"),
        ("failed", None, 0, "failed"),
        ("terminated", None, 1, "correct"),
    ],
)
def test_kinds(status: str, verdict: str | None, outcome: float, kind: str) -> None:
    judged = None if verdict is None else {"status": verdict}
    assert kind_of({"status": status, "verdict": judged, "outcome": outcome}) == kind


# ---------------------------------------------------------------------- charts


def test_ticks_are_round_and_cover() -> None:
    assert nice_ticks(0.0, 1.0) == [0, 0.5, 1.0]
    assert nice_ticks(-0.13, 0.42) == [-0.2, 0, 0.2, 0.4, 0.6]
    assert nice_ticks(0, 60, whole=True) == [0, 20, 40, 60]
    assert nice_ticks(0, 2, whole=True) == [0, 1, 2]


@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6))
def test_ticks_cover_any_range(low: float, size: float) -> None:
    ticks = nice_ticks(low, low + size)
    tolerance = 1e-6 * max(abs(low), size)
    assert ticks[0] <= low + tolerance and ticks[-1] >= low + size - tolerance
    assert 2 <= len(ticks) <= 8


def test_ticks_of_a_narrow_range_can_be_told_apart() -> None:
    html = chart_html(Chart("t", [(0, 6.2111), (1, 6.2118)]), 1)
    labels = re.findall(r'text-anchor="end">([^<]+)<', html)
    assert labels == ["6.2110", "6.2112", "6.2114", "6.2116", "6.2118"]


def test_moving_average_by_hand() -> None:
    points = [(float(i), float(i % 2)) for i in range(12)]
    smooth = moving_average(points)  # two neighbours on either side
    assert smooth[5] == (5.0, pytest.approx(3 / 5))
    assert smooth[0] == (0.0, pytest.approx(1 / 3))


def test_a_chart_places_points_linearly() -> None:
    html = chart_html(Chart("t", [(0, 0.0), (10, 1.0)], bounds=(0, 1)), 10)
    path = re.search(r'class="line" d="M([\d.]+) ([\d.]+)L([\d.]+) ([\d.]+)"', html)
    assert path is not None
    left, bottom, right, top = map(float, path.groups())
    assert (left, right) == (46, 368) and (top, bottom) == (12, 184)


def test_charts_survive_flat_short_and_empty_curves() -> None:
    assert chart_html(Chart("t", []), 0) == ""
    for points in ([(1.0, 5.0)], [(1.0, 0.0), (2.0, 0.0)], [(1.0, -1e-9), (2.0, 1e9)]):
        Page(chart_html(Chart("t", points), 2))
    only = chart_html(Chart("t", [], [Interval(0, 0.5, 0.4, 0.6)], "evaluation"), 0)
    assert "0.5 [0.4, 0.6]" in only


# ---------------------------------------------------------------------- pages


def test_every_token_is_one_span_with_its_numbers(tokenizer: Any, tmp_path: Path) -> None:
    good = episode(tokenizer, verdict=Verdict(1.0, "correct"))
    bad = episode(tokenizer, group=1, verdict=Verdict(0.0, "wrong"))
    records = [
        episode_record(good, advantages(good, 1.0), tokenizer),
        episode_record(bad, advantages(bad, -0.5), tokenizer),
    ]
    _, parsed = page(tmp_path, records)
    spans = parsed.tokens()
    assert len(spans) == len(good.tokens) + len(bad.tokens)
    assert [str(s["data-t"]).split(",")[0] for s in spans] == [
        str(i) for i in [*good.tokens, *bad.tokens]
    ]
    sampled = [s for s in spans if s.get("class")]
    assert [s["class"] for s in sampled] == ["p6"] * good.action_mask.sum() + [
        "n3"
    ] * bad.action_mask.sum()
    assert str(sampled[0]["data-t"]).split(",")[1:] == ["-0.5", "+1"]
    assert "information gain +0.25" in parsed.text
    assert "invalid call" in parsed.text and "✓ answer" in parsed.text


def test_hostile_text_stays_text(tokenizer: Any, tmp_path: Path) -> None:
    hostile = episode(
        tokenizer,
        action=HOSTILE.replace("\ud800", ""),
        observation=HOSTILE.replace("\ud800", ""),
        prompt=HOSTILE.replace("\ud800", ""),
        verdict=Verdict(0.0, "wrong", {HOSTILE: HOSTILE}),
    )
    failed = episode(tokenizer, group=1, status="failed", error=HOSTILE)
    records = [
        episode_record(hostile, advantages(hostile, 1.0), tokenizer),
        episode_record(failed, None, tokenizer),
    ]
    records[0]["task_id"] = HOSTILE
    records[0]["turns"][0]["scores"] = {HOSTILE: 1.0}
    records[0]["turns"][1]["info"]["tool"] = HOSTILE
    text, parsed = page(
        tmp_path, records, title=HOSTILE, config={HOSTILE: HOSTILE}, facts={"a": HOSTILE}
    )
    assert [tag for tag, _ in parsed.tags if tag in ("script", "style")] == ["style", "script"]
    assert not {"img", "link", "iframe"} & {tag for tag, _ in parsed.tags}
    assert not any(name.startswith("on") for _, attrs in parsed.tags for name in attrs)
    assert "\x00" not in text and "\x1b" not in text and "\u202e" not in text
    assert len(parsed.tokens()) == len(hostile.tokens) + len(failed.tokens)


def test_a_page_refers_to_nothing_outside(tokenizer: Any, tmp_path: Path) -> None:
    t = episode(tokenizer, observation="see http://example.org/ and https://example.org/")
    text, parsed = page(tmp_path, [episode_record(t, advantages(t, 1.0), tokenizer)])
    for _, attrs in parsed.tags:
        assert not {"src", "href", "action", "style"} & set(attrs)
        assert not any("//" in (value or "") for value in attrs.values())
    own = (
        re.search(r"<style>(.*?)</style>", text, re.S),
        re.search(r"<script>(.*?)</script>", text, re.S),
    )
    assert all(part is not None and "http" not in part[1] and "url(" not in part[1] for part in own)
    policy = next(a["content"] for tag, a in parsed.tags if a.get("http-equiv"))
    assert policy is not None and policy.startswith("default-src 'none'; style-src 'sha256-")


def test_filters_say_how_many(tokenizer: Any, tmp_path: Path) -> None:
    trajectories = [
        episode(tokenizer, verdict=Verdict(1.0, "correct")),
        episode(tokenizer, verdict=Verdict(0.0, "unparsable"), status="truncated"),
        episode(tokenizer, status="failed", error="RuntimeError: no server"),
        episode(tokenizer, verdict=Verdict(1.0, "correct")),
    ]
    _, parsed = page(tmp_path, [episode_record(t, None, tokenizer) for t in trajectories])
    text = " ".join(parsed.text.split())
    assert all(label in text for label in ("all 4", "correct 2", "wrong 1", "failed 1"))
    kinds = [a["data-kind"] for tag, a in parsed.tags if tag == "details" and "data-kind" in a]
    assert kinds == ["correct", "wrong", "failed", "correct"]
    assert "RuntimeError: no server" in text and "out of budget" in text


def test_curves_and_headline(tmp_path: Path) -> None:
    metrics = [
        {"iteration": i, "success": i / 20, "entropy": None, "kl": 1e-14, "tokens_per_s": 100.0}
        for i in range(1, 21)
    ]
    evaluations = [
        {"iteration": 0, "success": 0.23, "success_ci95": [0.18, 0.29], "tasks": 200},
        {"iteration": 20, "success": 0.81, "success_ci95": [0.75, 0.86], "tasks": 200},
    ]
    _, parsed = page(tmp_path, [], metrics=metrics, evaluations=evaluations)
    assert "0.23" in parsed.text and "0.75 to 0.86" in parsed.text
    titles = [a["aria-label"] for tag, a in parsed.tags if tag == "svg"]
    assert titles == ["Success", "Throughput"]  # neither measured nothing nor rounding is drawn
    data = next(json.loads(str(a["data-chart"])) for tag, a in parsed.tags if tag == "svg")
    assert data["intervals"] == [[0.0, "0.23 [0.18, 0.29]"], [20.0, "0.81 [0.75, 0.86]"]]
    assert len(data["points"]) == 20


def test_an_empty_run_has_a_page(tmp_path: Path) -> None:
    _, parsed = page(tmp_path, [])
    assert "a run" in parsed.text


def test_64_episodes_of_400_tokens_stay_under_3_mb(tokenizer: Any, tmp_path: Path) -> None:
    long = "<information>\n" + "Iron Ribbon was written by Cara Zander. " * 60
    trajectory = episode(tokenizer, observation=long, verdict=Verdict(1.0, "correct"))
    assert len(trajectory.tokens) >= 400
    record = episode_record(trajectory, advantages(trajectory, 0.5), tokenizer)
    text, _ = page(tmp_path, [{**record, "group": i // 8} for i in range(64)])
    assert len(text.encode()) < 3_000_000 * len(trajectory.tokens) / 400


@given(st.text())
def test_visible_text_has_no_markup_and_no_controls(text: str) -> None:
    shown = visible(text)
    assert not set(shown) & {"<", ">", '"', "\x00", "\u202e", "\x7f"}
    shown.encode("utf-8")
