"""scripts/gpu_check can be trusted to run on the day a GPU is there: its dry run goes through the same code."""

import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

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


@pytest.fixture
def gpu_check(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script as a module; it looks up modules of its own beside the tests."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    loader = importlib.machinery.SourceFileLoader("gpu_check_script", str(SCRIPT))
    spec = importlib.util.spec_from_loader("gpu_check_script", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


ENDS = {
    "it raises": ("raise RuntimeError('illegal address')", "illegal address"),
    "it dies": ("os.kill(os.getpid(), 9)", "ended with status -9"),
    "it hangs": ("time.sleep(100)", "timed out"),
}


@pytest.mark.parametrize(("end", "said"), ENDS.values(), ids=ENDS)
def test_what_a_section_found_before_it_failed_is_kept(end: str, said: str, gpu_check: ModuleType, tmp_path: Path):
    script, section = tmp_path / "script.py", "def environment(dry: bool) -> Result:"
    ending = f"""{section}
    found = Found(ok=True)
    with guarded(found, "second"):
        raise ValueError("no kernel")
    found["first"] = 1
    {end}

def unused(dry: bool) -> Result:"""
    script.write_text(SCRIPT.read_text().replace(section, ending))
    gpu_check.__file__ = str(script)
    found = gpu_check.run_apart("environment", 10.0, True, {**os.environ, "PYTHONPATH": str(SCRIPT.parents[1])})
    assert found["first"] == 1 and "no kernel" in found["second"]["error"], "an error costs its own entry only"
    assert said in found["error"] and found["ok"] is False


def test_tests_that_hang_are_named_beside_those_that_failed(gpu_check: ModuleType, tmp_path: Path):
    (tmp_path / "test_it.py").write_text(
        "import time\ndef test_right(): pass\ndef test_wrong(): assert 1 == 2\ndef test_endless(): time.sleep(100)\n"
    )
    (tmp_path / "test_broken.py").write_text("import nothing_of_this_name\n")
    arguments = [str(tmp_path), "-p", "no:cacheprovider", "--rootdir", str(tmp_path)]
    found = gpu_check.run_tests(arguments, False, 10.0)
    assert found["ok"] is False and found["timed_out"]
    assert any("test_wrong" in line for line in found["failed"])
    assert "test_endless" in found["last_lines"][-1]
    found = gpu_check.run_tests([*arguments, "-k", "not endless"], False, 60.0)
    assert any("test_wrong" in line and "assert 1 == 2" in line for line in found["failed"])
    assert any("test_broken" in line for line in found["failed"])


def test_what_a_section_leaves_behind_is_ended_with_it(gpu_check: ModuleType, tmp_path: Path):
    mark = tmp_path / "mark"
    child = f"import time; time.sleep(2); open({str(mark)!r}, 'w')"
    script = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {child!r}]); print('left')"
    status, text = gpu_check.said(
        [sys.executable, "-c", f"{script}; sys.stdout.flush(); import time; time.sleep(9)"], 1
    )
    assert status is None and "left" in text
    time.sleep(2.5)
    assert not mark.exists()
