"""Against real peers: each file of tests/orthanc named peers_*.py is run by a pytest of its own, beside an Orthanc of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CANNOT = 77


@pytest.mark.parametrize("peers", sorted(path.name for path in (HERE / "orthanc").glob("peers_*.py")))
def test_beside_a_real_orthanc(peers: str) -> None:
    pytest.importorskip("httpx2")
    command = [str(HERE / "orthanc" / "beside-orthanc"), sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    command += ["-o", "python_files=peers_*.py", f"tests/orthanc/{peers}"]
    finished = subprocess.run(command, capture_output=True, text=True, check=False, cwd=HERE.parent, timeout=300)
    if finished.returncode == CANNOT:
        pytest.skip(finished.stderr.strip())
    assert finished.returncode == 0, finished.stdout[-6000:] + finished.stderr[-2000:]
