"""The folders at the top are the package."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = pytest.mark.repository


@pytest.mark.parametrize("folder", ["agents", "envs", "recipes", "rewards", "sandboxes"])
def test_each_link_is_its_folder(folder: str) -> None:
    link = ROOT / "src" / "turnwise" / folder
    assert link.is_symlink()
    assert link.resolve() == (ROOT / folder).resolve()
    assert not link.readlink().is_absolute()


def test_the_embedded_model_is_small() -> None:
    weights = ROOT / "agents" / "tiny" / "model.safetensors"
    assert weights.stat().st_size <= 4 * 2**20


def test_no_data_or_run_is_tracked() -> None:
    listed = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if listed.returncode:
        pytest.skip(f"not a git checkout: {listed.stderr.strip()}")
    files = listed.stdout.split()
    assert not [f for f in files if f.startswith(("runs/", "dist/", "build/"))]
