"""A short training in a process of its own: nothing has to be restored, and running out of memory is survived."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from project.errors import UserError
from project.extras.child import run_to_the_end
from project.files import written_whole

# Words of torch, Python and C++, and of a data worker that the kernel has killed.
OUT_OF_MEMORY = ("out of memory", "allocate memory", "not enough memory", "memoryerror", "bad_alloc", "signal: killed")


class OutOfMemoryError(UserError):
    """The training needs more memory than there is."""


def measure(config: dict[str, Any], rates: list[float], memory_limit: float | None = None) -> dict[str, Any]:
    """Train for some steps without schedule, warm-up, validation and the callbacks of the configuration.

    Layers that wait for an epoch train from the start; what never trains stays frozen.

    Args:
        config: Of a fit, as plain values.
        rates: Of project.extras.tune.record.StepRecord, whose result is returned; so is memory_limit.

    Raises:
        OutOfMemoryError: memory ran out.
        UserError: the training failed otherwise.
    """
    freeze = config["model"]["freeze"]
    if freeze and freeze.get("init_args", {}).get("until"):
        freeze = None
    model = {"schedule": None, "schedule_interval": None, "warmup": 0.0, "warmup_start": 0.01, "freeze": freeze}
    with tempfile.TemporaryDirectory() as folder:
        file, out, log = (Path(folder, name) for name in ("config.yaml", "result.json", "log.txt"))
        arguments = {"out": str(out), "rates": rates, "memory_limit": memory_limit}
        own = [{"class_path": "project.extras.tune.record.StepRecord", "init_args": arguments}]
        trainer = {"max_epochs": -1, "max_steps": len(rates), "limit_val_batches": 0, "callbacks": own, "logger": False}
        trainer |= {"enable_checkpointing": False, "enable_progress_bar": False, "default_root_dir": folder}
        changed = config | {"trainer": config["trainer"] | trainer, "model": config["model"] | model}
        file.write_text(yaml.safe_dump(changed), encoding="utf-8")
        command = [sys.executable, "-m", "project", "fit", "--config", str(file)]
        with log.open("w") as stderr:
            code, stopped = run_to_the_end(command, stdout=subprocess.DEVNULL, stderr=stderr)
        if stopped:
            raise SystemExit(128 + stopped)
        if out.is_file():
            return json.loads(out.read_text())
        said = log.read_text().strip() or f"exit code {code}"
        if code == -9 or any(words in said.lower() for words in OUT_OF_MEMORY):  # -9: killed by the kernel
            raise OutOfMemoryError("the measurement ran out of memory; try a smaller data.batch_size")
        raise UserError(said.splitlines()[-1].removeprefix("error: "))


def write_yaml(path: Path, out: str, reason: str, values: dict[str, Any]) -> None:
    """Write a config file with a comment at its top, and say how to use it."""
    usage = f"python -m project fit --config ... --config {out}"
    with written_whole(path) as draft:
        draft.write_text(f"# {usage}\n# {reason}\n{yaml.safe_dump(values)}", encoding="utf-8")
    print(f"Wrote {path}; use it with: {usage}")
