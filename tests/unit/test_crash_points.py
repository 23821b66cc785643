"""A process that is killed before any one change of a name leaves nothing half-made, and the next one ends its work."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.crash_points import SCENARIOS

ROOT = Path(__file__).resolve().parents[2]
# Fewer would mean that the work is no longer watched.
LEAST = {
    "ArtifactReplaced": 8,
    "WorkFinished": 9,
    "VersionDeployed": 12,
    "StableRolledBack": 6,
    "ArchiveUnpacked": 8,
    "FeaturesKept": 4,
    "RunSaved": 6,
}


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_work_killed_before_any_change_of_a_name_leaves_nothing_half_made(
    scenario: str, tmp_path: Path
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.crash_points", scenario, str(tmp_path)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}/src:{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert int(done.stdout.split()[-1]) >= LEAST[scenario]
