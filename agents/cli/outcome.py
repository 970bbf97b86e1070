"""What came of a training run: as JSON, as lines for people, as a report."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from turnwise.agents.cli.memory import peak_memory_bytes
from turnwise.agents.cli.progress import duration
from turnwise.agents.cli.run_folder import RunFolder
from turnwise.agents.cli.settings import RunSettings


def summarise_run(folder: RunFolder, settings: RunSettings, *, finished: bool) -> dict[str, Any]:
    """What came of a run, as JSON."""
    rows = folder.rows(folder.metrics_file)
    evaluations = folder.rows(folder.evaluations_file)
    trained = [e for e in evaluations if e["iteration"] > 0]
    return {
        "run": str(folder.path),
        "env": settings.env,
        "credit": settings.credit,
        "model": settings.model,
        "steps": settings.steps,
        "iterations": rows[-1]["iteration"] if rows else 0,
        "finished": finished,
        "before": next((e for e in evaluations if e["iteration"] == 0), None),
        "after": trained[-1] if trained else None,
        "last": rows[-1] if rows else None,
        "train_s": sum(row["seconds"] for row in rows),
        "peak_memory_gb": round(peak_memory_bytes() / 1e9, 3),
        "model_folder": str(folder.model_folder) if folder.model_folder.is_dir() else None,
        "report": str(folder.report_file),
    }


def as_text(document: Mapping[str, Any]) -> str:
    """The summary for people; the last line is the result."""
    lines = [f"report {document['report']}"]
    if document["model_folder"]:
        lines.append(f"model  {document['model_folder']}")
    if not document["finished"]:
        lines += [
            f"stopped after {document['iterations']} of {document['steps']} iterations; go on with",
            f"  turnwise train --resume {document['run']}",
        ]
    cost = (
        f"trained {duration(document['train_s'])}, peak memory {document['peak_memory_gb']:.1f} GB"
    )
    before, after = document["before"], document["after"]
    if before is None or after is None:
        return "\n".join([*lines, cost])
    unseen = after["split"] == "heldout"
    name, what = ("held-out success", "unseen questions") if unseen else ("success", "tasks")
    rates = f"{rate(before)} -> {rate(after)} on {after['tasks']} {what}"
    return "\n".join([*lines, f"{name} {rates}, {cost}"])


def rate(evaluation: Mapping[str, Any]) -> str:
    """Such as `0.81 [0.75, 0.86]`."""
    if evaluation["success"] is None:
        return "unknown (every episode failed)"
    low, high = evaluation["success_ci95"]
    return f"{evaluation['success']:.2f} [{low:.2f}, {high:.2f}]"


def write_run_report(folder: RunFolder, settings: RunSettings, document: Mapping[str, Any]) -> None:
    """report.html from what the folder holds."""
    from turnwise.agents.report import write_report

    write_report(
        folder.report_file,
        title=folder.path.resolve().name,
        config=settings.to_json(),
        metrics=folder.rows(folder.metrics_file),
        episodes=folder.rows(folder.episodes_file),
        evaluations=folder.rows(folder.evaluations_file),
        facts={
            "Environment": settings.env,
            "Credit": settings.credit,
            "Model": settings.model,
            "Iterations": f"{document['iterations']} of {settings.steps}",
            "Episodes": f"{settings.groups} x {settings.group_size} per iteration",
            "Learning rate": f"{settings.lr:g}",
            "Seed": str(settings.seed),
            "Training": duration(document["train_s"]),
            "Peak memory": f"{document['peak_memory_gb']:.1f} GB",
        },
    )
