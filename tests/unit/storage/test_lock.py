"""Of several processes one holds a lock; the others wait, whatever becomes of it."""

import subprocess
import sys
from pathlib import Path

from soda_compile.storage.lock import locked

HOLDS = """
import sys, os
from pathlib import Path
from soda_compile.storage.lock import locked
with locked(Path(sys.argv[1]), "model", lambda: None):
    print("held", flush=True)
    sys.stdin.readline()
    os._exit(1)  # as where it is killed
"""


def test_it_waits_for_another_process_and_outlives_it(tmp_path: Path) -> None:
    waited: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "held\n"
        with locked(tmp_path, "another model", lambda: waited.append("another")):
            pass

        def waiting() -> None:
            waited.append("model")
            other.communicate("end\n")

        with locked(tmp_path, "model", waiting):
            assert other.returncode == 1
    assert waited == ["model"]


def test_a_folder_that_cannot_be_written_is_not_locked(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ran = False
    with locked(tmp_path / "file", "model", lambda: None):
        ran = True
    assert ran
