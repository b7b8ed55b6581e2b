"""One line out of many: real messages of the parser, caught on their way through the command line."""

import pytest
from conftest import DIGITS, SMALL

import project.messages
from project.messages import LIMIT, one_line

FIT = ["fit", *DIGITS, *SMALL]


@pytest.fixture
def parsed(cli, monkeypatch):
    """Runs a command that the parser refuses: (its own message, the one line that is printed)."""

    def run(*arguments: str) -> tuple[str, str]:
        raw = []

        def record(message: str, keys) -> str:
            raw.append(message)
            return one_line(message, keys)

        monkeypatch.setattr(project.messages, "one_line", record)
        result = cli(*arguments)
        assert result.code == 2 and len(result.err.splitlines()) == 1 and result.err.startswith("error: ")
        assert raw, "the parser was not asked"
        return raw[-1], result.err.strip().removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--model.lrr", "1"], "model.lrr: there is no such key; did you mean model.lr?"),
        (["--batch_size", "1"], "batch_size: there is no such key; did you mean data.batch_size?"),
        (["--max_epochs=3"], "max_epochs: there is no such key; did you mean trainer.max_epochs?"),
        (["--zzz", "1"], "zzz: there is no such key"),
        (["--model.net.init_args.chanels", "[8]"], "did you mean channels?"),
        (
            ["--model.net", "project.nets.ConvNett"],
            "project.nets has no 'ConvNett'; did you mean project.nets.ConvNet?",
        ),
        (["--data.source", "project.data.Zzz"], "project.data has no 'Zzz'"),
        (["--model.lr", "fast"], "model.lr: expected a number, not fast"),
        (["--data.num_workers", "two"], "data.num_workers: expected a whole number, not two"),
        (
            ["--model.net", "subprocess.Popen"],
            "model.net: subprocess.Popen is not a Module; write the path of one, such as project",
        ),
        (["--model.task", "torch.nn.Linear"], "model.task: torch.nn.Linear is not a Task; write the path of one"),
        (
            ["--model.schedule", "os.system"],
            "os.system is not a Schedule; write the path of one, such as project.optim.Cosine",
        ),
        (["--data.resize", "stretch"], "data.resize: expected one of 'letterbox', 'crop', 'squash', not stretch"),
        (["--model.net.init_args.channels", "x"], "model.net: channels: expected a list, not x"),
        (["--model.schedule", "project.optim.Step"], "model.schedule: step_size is missing"),
        (["--trainer.callbacks", "project.callbacks.EMA"], "did you mean project.run.EMA?"),
        (["--model.label_smoothing", "0.1"], "model.label_smoothing: it is now model.task.label_smoothing"),
        (["--trainer.callbacks", "EarlyStop"], "'EarlyStop' is not a class; write its whole path"),
    ],
)
def test_real_messages(parsed, arguments, line) -> None:
    raw, said = parsed(*FIT, *arguments)
    assert line in said and raw != said
    assert len(said) < LIMIT + 20


def test_they_were_long(parsed) -> None:
    raw, said = parsed(*FIT, "--data.num_workers", "two")
    assert len(raw.splitlines()) > 3 and "\n" not in said and len(said) < len(raw)


def test_a_missing_part(parsed, tmp_path) -> None:
    (tmp_path / "more.yaml").write_text("data: missing.yaml")
    raw, said = parsed(*FIT, "--config", tmp_path / "more.yaml")
    assert "missing.yaml" in said and "data" in said and len(said) <= len(raw)


def test_a_huge_value_is_cut(parsed) -> None:
    raw, said = parsed(*FIT, "--model.lr", "x" * 5000)
    assert len(raw) > 5000 and len(said) <= LIMIT + len("model.lr: ") and said.startswith("model.lr: ")


def test_unknown_forms_are_only_put_on_one_line() -> None:
    assert one_line("something\n  quite   different\n", []) == "something quite different"
    assert one_line('Parser key "data.root":\n  is\n  odd', []) == "data.root: is odd"
    assert one_line("", []) == ""
    assert len(one_line("x " * 5000, [])) == LIMIT


def test_the_nearest_name() -> None:
    message = "Unrecognized arguments: no; unrecognized arguments: --trainer.max_epoch 3"
    keys = ["trainer.max_epochs", "trainer.min_epochs", "model.lr"]
    assert one_line(message, keys) == "trainer.max_epoch: there is no such key; did you mean trainer.max_epochs?"
    assert (
        one_line("unrecognized arguments: --lr", keys) == "lr: there is no such key; did you mean model.lr?"
    )  # by its last part
    assert one_line("unrecognized arguments: --other", keys) == "other: there is no such key"
    assert one_line("unrecognized arguments: --data.augment+", ["data.augment"]).startswith("data.augment: ")


def test_a_module_that_cannot_be_imported_has_no_near_names() -> None:
    assert one_line("module 'nowhere.to.be' has no attribute 'Found'", []) == "nowhere.to.be has no 'Found'"
    assert "did you mean json.loads?" in one_line("module 'json' has no attribute 'load_s'", [])
