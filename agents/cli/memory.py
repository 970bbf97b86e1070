"""Peak memory of this process and of every process under it."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_memory_bytes() -> int:
    """Sum of the peaks of resident memory of this process and its living descendants.

    Pages that processes share count once for each. Without /proc, this process alone.
    """
    peaks: dict[int, int] = {}
    parents: dict[int, int] = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in status.read_text().splitlines())
        except OSError:
            continue  # it has ended meanwhile
        process = int(status.parent.name)
        parents[process] = int(lines["PPid"])
        peaks[process] = int(lines.get("VmHWM", "0 kB").split()[0]) * 1024
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    root = int(Path("/proc/self").resolve().name) if parents else 0
    if not parents:
        return own if sys.platform == "darwin" else own * 1024
    return sum(peak for process, peak in peaks.items() if _is_under(process, root, parents))


def _is_under(process: int, root: int, parents: dict[int, int]) -> bool:
    while process in parents:
        if process == root:
            return True
        process = parents[process]
    return False
