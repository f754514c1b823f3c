"""scripts/gpu_check can be trusted to run on the day a GPU is there: its dry run goes through the same code."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_check"


def check(out: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(SCRIPT), "--out", str(out), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=400, env={**os.environ})


@pytest.mark.slow
def test_a_dry_run_checks_planes_network_and_a_whole_group(tmp_path: Path):
    done = check(
        tmp_path / "out.json",
        "--dry-run",
        "--only",
        "planes,neighbours,blocks_45,shipped_lite,trials,fences,vectors_a,speed,group_released,group_base",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out.json").read_text())
    assert found["dry_run"] is True
    assert found["planes"]["ok"] and found["vectors_a"]["ok"] and found["group_released"]["ok"]
    assert found["group_base"]["ok"] and found["trials"]["ok"] and found["fences"]["ok"]
    assert found["shipped_lite"]["ok"] and found["shipped_lite"]["rms_change_codes"] > 10, found["shipped_lite"]
    assert found["blocks_45"]["ok"] and found["blocks_45"]["fp16"]["independent_of_batch"]
    assert found["neighbours"]["ok"] and found["neighbours"]["136x88 YUV 8"]["share_of_vectors_moving"] > 0.5
    assert found["vectors_a"]["s eager fp32"]["largest"] < 2e-5
    assert any("autocast" in name for name in found["speed"])


def test_a_section_that_does_not_exist_is_refused(tmp_path: Path):
    done = check(tmp_path / "out.json", "--dry-run", "--only", "nothing")
    assert done.returncode != 0 and "no section nothing" in done.stderr
