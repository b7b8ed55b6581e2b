"""What starts without torch; what is set before it is loaded, and what the user has set."""

import ctypes
import json
import os
import subprocess
import sys

import pytest
from conftest import ROOT

from project.__main__ import SPINS, prepare


@pytest.mark.parametrize(
    ("given", "others", "spins"),
    [
        ({}, True, SPINS),
        ({"HOME": "/"}, True, SPINS),
        ({}, False, None),
        ({"GOMP_SPINCOUNT": "7"}, True, "7"),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, True, None),
        ({"KMP_BLOCKTIME": "0"}, True, None),
    ],
)
def test_how_threads_wait(monkeypatch, given, others, spins) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())  # of a C library that is not glibc
    monkeypatch.setattr("project.__main__.crowded", lambda: others)
    prepare(given)
    assert given.get("GOMP_SPINCOUNT") == spins


@pytest.mark.parametrize("given", [{}, {"MALLOC_ARENA_MAX": "2"}, {"GLIBC_TUNABLES": "glibc.malloc.check=1"}])
def test_memory_is_kept_unless_the_user_says_otherwise(monkeypatch, given) -> None:
    calls = []

    class Library:
        def mallopt(self, option: int, value: int) -> None:
            calls.append((option, value))

    monkeypatch.setattr(ctypes, "CDLL", lambda name: Library())
    prepare(dict(given))
    # malloc.h: M_TRIM_THRESHOLD -1, M_TOP_PAD -2, M_MMAP_MAX -4
    assert sorted(calls) == ([] if given else [(-4, 0), (-2, 2**28), (-1, -1)])


def test_a_program_that_imports_the_project_is_left_alone() -> None:
    words = "import os; before = dict(os.environ); import project.__main__; assert dict(os.environ) == before"
    subprocess.run([sys.executable, "-c", words], check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})


def test_help_version_and_unknown_commands_do_without_torch() -> None:
    words = [["--version"], ["--help"], ["-h"], [], ["fitt"], ["--unknown"]]
    code = (
        "import json, sys; from project.__main__ import main; codes = [main(each) for each in json.loads(sys.argv[1])];"
        "print(json.dumps([codes, sorted({name.partition('.')[0] for name in sys.modules})]))"
    )
    command = [sys.executable, "-c", code, json.dumps(words)]
    done = subprocess.run(command, check=True, cwd=ROOT, capture_output=True, text=True)
    codes, imported = json.loads(done.stdout.splitlines()[-1])
    assert codes == [0, 0, 0, 2, 2, 2]
    heavy = {
        "torch",
        "torchvision",
        "lightning",
        "torchmetrics",
        "tensorboard",
        "numpy",
        "scipy",
        "sklearn",
        "matplotlib",
    }
    assert not heavy & set(imported)
    assert "did you mean fit?" in done.stderr and done.stderr.count("\n") == 2
