"""A trial without training: it speaks as a fit does, and goes wrong when it is told to."""

import json
import os
import signal
import socket
import sys
import time
from pathlib import Path

import yaml


def main(folder: Path) -> None:
    x = yaml.safe_load((folder / "params.yaml").read_text())
    told = json.loads(os.environ["PROJECT_TRIAL"])
    stream = socket.socket(fileno=told["socket"]).makefile("rw")

    def send(message: dict) -> str:
        stream.write(json.dumps(message) + "\n")
        stream.flush()
        return stream.readline().strip()

    how = x.get("how", "good")
    with (folder / "began").open("a") as file:
        file.write(f"{os.getpid()}\n")
    if how == "refused":
        send({"refused": "metric: no metric 'val/f1' is logged"})
        sys.exit(2)
    for step in range(1, 4):
        time.sleep(float(os.environ.get("FAKE_SECONDS", 0)))
        if how == "raises" and step == 2:
            raise RuntimeError(f"boom at {x.get('lr')}" if "lr" in x else "boom")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "silent":
            return
        value = float("nan") if how == "nan" else step / 10 - (x.get("lr", 0) - 0.5) ** 2
        if send({"step": step, "value": value}) != "go":
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
