"""Episodes as HTML: every token a span, coloured by its advantage."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from itertools import groupby
from typing import Any

import numpy as np

LEVELS = 6
"""Shades on either side of 0."""

Record = Mapping[str, Any]

_BIDI = dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F], "⍰")
_CONTROL = {i: chr(0x2400 + i) for i in range(32) if chr(i) not in "\n\t"} | {127: "␡"}
_LONE = dict.fromkeys(range(0xD800, 0xE000), "⍰")
_VISIBLE = {**_BIDI, **_CONTROL, **_LONE}
_LABELS = {"correct": "✓ correct", "wrong": "✗ wrong", "failed": "⚠ failed"}


def visible(text: str) -> str:
    """Text for HTML: escaped, with control and direction characters made visible."""
    return escape(text.translate(_VISIBLE))


def kind_of(record: Record) -> str:
    """What the filter calls an episode: correct, wrong or failed."""
    verdict = record.get("verdict")
    if record["status"] == "failed":
        return "failed"
    if verdict is None:
        return "correct" if (record.get("outcome") or 0) >= 1 else "wrong"
    if verdict["status"] in ("timeout", "crash"):
        return "failed"
    return "correct" if verdict["status"] == "correct" else "wrong"


def advantage_scale(records: Sequence[Record]) -> float:
    """The advantage that gets the darkest shade: the 90th percentile of |advantage|, off 0."""
    sizes = [abs(a) for r in records for a in r["advantages"] or () if a]
    return float(np.quantile(sizes, 0.9)) if sizes else 1.0


def shade(advantage: float | None, scale: float) -> str:
    """The CSS class of a sampled token: n6 ... n1, z, p1 ... p6."""
    if not advantage:
        return "z"
    level = min(LEVELS, max(1, round(LEVELS * abs(advantage) / scale)))
    return f"{'p' if advantage > 0 else 'n'}{level}"


def episodes_html(records: Sequence[Record]) -> str:
    """All episodes, grouped by task in order of appearance."""
    scale = advantage_scale(records)
    order = {key: i for i, key in enumerate(dict.fromkeys(_group_key(r) for r in records))}
    ranked = sorted(records, key=lambda r: order[_group_key(r)])
    groups = [list(group) for _, group in groupby(ranked, key=_group_key)]
    return "".join(_group(group, scale, opened=i == 0) for i, group in enumerate(groups))


def _group_key(record: Record) -> tuple[Any, Any]:
    return record["group"], record["task_id"]


def _group(records: Sequence[Record], scale: float, *, opened: bool) -> str:
    kinds = [kind_of(r) for r in records]
    name = next((r["task_id"] for r in records if r["task_id"]), "") or "task"
    many = f"{len(records)} episodes" if len(records) > 1 else "1 episode"
    counts = ", ".join(f"{kinds.count(k)} {k}" for k in _LABELS if k in kinds)
    prompt = next((r["prompt"] for r in records if r["prompt"]), "")
    question = f'<p class="question">{visible(prompt)}</p>' if prompt else ""
    # The most telling episode first, open: one that was right, if any was.
    first = kinds.index("correct") if "correct" in kinds else 0
    inner = "".join(
        _episode(r, k, number, scale, opened=opened and number == first)
        for number, (r, k) in enumerate(zip(records, kinds, strict=True))
    )
    return (
        f'<section class="group"><header><h3>{visible(name)}</h3>'
        f'<span class="dim">{many}: {counts}</span></header>{question}{inner}</section>'
    )


def _episode(record: Record, kind: str, number: int, scale: float, *, opened: bool) -> str:
    turns = record["turns"]
    sampled = sum(t["action_span"][1] - t["action_span"][0] for t in turns)
    strip = "".join(f'<i class="{shade(_turn_advantage(record, t), scale)}"></i>' for t in turns)
    facts = [f"{len(turns)} turn{'s' * (len(turns) != 1)}", f"{sampled} tokens"]
    verdict = record.get("verdict")
    if kind != "failed":
        facts.insert(0, f"score {_number(record['outcome'])}")
    if verdict is not None and verdict["status"] not in ("correct", "wrong"):
        facts.append(visible(verdict["status"]))
    if record["status"] == "truncated":
        facts.append("out of budget")
    error = f'<p class="error">{visible(record["error"])}</p>' if record["error"] else ""
    return (
        f'<details class="episode" data-kind="{kind}"{" open" if opened else ""}><summary>'
        f'<span class="badge {kind}">{_LABELS[kind]}</span><b>#{number + 1}</b>'
        f'<span class="strip" title="mean advantage of each turn">{strip}</span>'
        f'<span class="dim">{" · ".join(facts)}</span></summary>'
        f'<div class="body">{error}{_tokens_and_turns(record, scale)}{_verdict(record)}</div>'
        f"</details>"
    )


def _tokens_and_turns(record: Record, scale: float) -> str:
    length, turns = len(record["token_ids"]), record["turns"]
    start = turns[0]["action_span"][0] if turns else length
    end = max((t["observation_span"][1] for t in turns), default=start)
    parts = [_folded(record, "Prompt", 0, start)]
    parts += [_turn(record, turn, scale) for turn in turns]
    parts.append(_folded(record, "After the last turn", max(end, start), length))
    return "".join(parts)


def _folded(record: Record, title: str, start: int, end: int) -> str:
    if end <= start:
        return ""
    return (
        f'<details class="prompt"><summary>{title} <span class="dim">{end - start} tokens</span>'
        f'</summary><div class="tokens">{_given(record, start, end)}</div></details>'
    )


def _turn(record: Record, turn: Mapping[str, Any], scale: float) -> str:
    info = turn["info"]
    chips = [f"reward {_number(turn['reward'], sign=True)}"]
    chips += [
        f"{visible(str(name)).replace('_', ' ')} {_number(value, sign=True)}"
        for name, value in turn["scores"].items()
    ]
    advantage = _turn_advantage(record, turn)
    if advantage is not None:
        chips.append(f"advantage {_number(advantage, sign=True)}")
    head = "".join(f"<span>{chip}</span>" for chip in chips)
    call = ""
    if "valid" in info:
        ok = bool(info["valid"])
        tool = visible(str(info.get("tool") or "call"))
        call = (
            f'<span class="call {"ok" if ok else "bad"}">{"✓" if ok else "✗"} '
            f"{tool if ok else 'invalid call'}</span>"
        )
    action = "".join(_sampled(record, i, scale) for i in range(*turn["action_span"]))
    start, end = turn["observation_span"]
    if end > start:
        observation = f'<div class="tokens seen">{_given(record, start, end)}</div>'
    elif turn["observation"]:
        observation = f'<div class="tokens seen">{visible(turn["observation"])}</div>'
    else:
        observation = ""
    return (
        f'<div class="turn"><div class="head"><b>Turn {turn["index"] + 1}</b>{call}{head}</div>'
        f'<div class="tokens">{action}</div>{observation}</div>'
    )


def _sampled(record: Record, i: int, scale: float) -> str:
    """A sampled token: id, log-probability and advantage for the tooltip."""
    advantage = record["advantages"][i] if record["advantages"] is not None else None
    facts = [str(int(record["token_ids"][i])), _number(record["logprobs"][i])]
    if advantage is not None:
        facts.append(_number(advantage, sign=True))
    text = visible(record["token_texts"][i])
    return f"<span class={shade(advantage, scale)} data-t={','.join(facts)}>{text}</span>"


def _given(record: Record, start: int, end: int) -> str:
    """Tokens that the policy did not sample."""
    return "".join(
        f"<span data-t={int(record['token_ids'][i])}>{visible(record['token_texts'][i])}</span>"
        for i in range(start, end)
    )


def _verdict(record: Record) -> str:
    verdict = record.get("verdict")
    if verdict is None:
        return ""
    detail = ", ".join(f"{name}: {value}" for name, value in verdict["detail"].items())
    return f'<p class="verdict dim">Verdict: {visible(verdict["status"])}. {visible(detail)}</p>'


def _turn_advantage(record: Record, turn: Mapping[str, Any]) -> float | None:
    """Mean advantage of a turn's sampled tokens."""
    start, end = turn["action_span"]
    if record["advantages"] is None or end <= start:
        return None
    return sum(a or 0.0 for a in record["advantages"][start:end]) / (end - start)


def _number(value: float | None, *, sign: bool = False) -> str:
    if value is None:
        return "n/a"
    text = f"{value:+.3f}" if sign else f"{value:.3f}"
    return text.rstrip("0").rstrip(".") if value else "0"
