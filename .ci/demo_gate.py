"""Fails unless the demo's summary shows what the README says of it."""

import json
import sys
from pathlib import Path

summary = json.loads(Path(sys.argv[1]).read_text())
before, after = summary["before"]["success"], summary["after"]["success"]
print(f"held-out success {before:.2f} -> {after:.2f} in {summary['train_s']:.0f} s of training")
if after - before < 0.40:
    sys.exit("The demo must gain at least 40 points.")
