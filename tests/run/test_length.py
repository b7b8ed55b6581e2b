"""How many epochs a training takes where nobody says it."""

import pytest
import yaml
from conftest import make_folder
from hypothesis import given
from hypothesis import strategies as st

from project.run import plan
from project.run.plan import epochs_for

AUTO = {"max_epochs": "auto", "max_steps": -1, "accumulate_grad_batches": 1}


@given(st.integers(0, 200_000), st.integers(1, 512), st.integers(1, 8))
def test_as_many_epochs_as_take_800_steps_within_the_limits(images, batch, together) -> None:
    steps = len(range(0, images, batch * together))
    enough = (epochs for epochs in range(8, 100) if epochs * steps >= 800)
    assert epochs_for(AUTO | {"accumulate_grad_batches": together}, images, batch)[0] == next(enough, 100)


@pytest.mark.parametrize(("asked", "steps", "epochs"), [(3, -1, 3), (-1, -1, -1), (None, -1, None), ("auto", 50, None)])
def test_what_is_asked_for_stays(asked, steps, epochs) -> None:
    assert epochs_for(AUTO | {"max_epochs": asked, "max_steps": steps}, 100, 10) == (epochs, "")


def test_fit_plans_says_and_keeps_the_number_and_check_plans_the_same(cli, workdir, tiny_net, monkeypatch) -> None:
    few = ["fit", "--data.root", str(make_folder(workdir / "few")), *tiny_net, "--data.batch_size", "16"]
    for name, value in (("STEPS", 10), ("FEWEST", 2)):
        monkeypatch.setattr(plan, name, value)
    result = cli(*few)
    config = yaml.safe_load((workdir / "runs/fit/version_0/config.yaml").read_text())
    epochs = config["trainer"]["max_epochs"]
    line = f"length     {epochs} epochs for "
    assert result.code == 0 and line in result.out and f"epoch {epochs}/{epochs} " in result.out
    images = int(result.out.partition(line)[2].split()[0])
    assert epochs == max(2, -(-10 // -(-images // 16)))
    assert line in cli("check", *few[1:]).out
    resumed = cli("fit", "--ckpt_path", "last", "--trainer.max_epochs", str(epochs + 1))
    assert resumed.code == 0 and f"epoch {epochs + 1}/{epochs + 1} " in resumed.out
    assert cli(*few, "--trainer.max_epochs", "soon").code == 2
