"""A process that searches with fake trials: fake_worker.py STORAGE FOLDER TRIALS [HOST]."""

import socket
import sys
from pathlib import Path

from project.errors import UserError
from project.extras.search.sampler import Seeded
from project.extras.search.search import Search
from project.extras.search.space import Parameter, Space
from project.extras.search.study import Study

SPACE = Space([Parameter("lr", "float", 0.0, 1.0)])


def build(
    storage: str, folder: Path, trials: int, heartbeat: float = 0.5, space: Space = SPACE, pruner=None, **named
) -> Search:
    import optuna

    study = Study(storage, "fake", "maximize", Seeded("tpe", 0), pruner or optuna.pruners.NopPruner(), heartbeat)
    study.begin({"space": space.spec()}, trials, join=True)
    fake = str(Path(__file__).with_name("fake_trial.py"))
    return Search(study, space, folder, lambda place: [sys.executable, fake, str(place)], "val/acc", True, **named)


def main() -> int:
    storage, folder, trials, *host = sys.argv[1:]
    if host:
        socket.gethostname = lambda: host[0]
    try:
        return build(storage, Path(folder), int(trials)).run()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
