"""Whether the processor is crowded, with real processes beside."""

import os
import subprocess
import sys

import pytest

from project.processor import crowded

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone tells")


def test_busy_processes_crowd_it_and_more_cores_than_they_need_do_not(monkeypatch) -> None:
    words = [sys.executable, "-c", "print(flush=True)\nwhile True: pass"]
    others = [subprocess.Popen(words, stdout=subprocess.PIPE) for _ in range(os.cpu_count())]
    try:
        for other in others:
            other.stdout.readline()  # it has started
        assert crowded()
        monkeypatch.setattr(os, "cpu_count", lambda: 10**6)
        assert not crowded()
    finally:
        for other in others:
            other.kill()
            other.communicate()


def test_where_it_cannot_be_known_it_is_not(monkeypatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    assert not crowded()
