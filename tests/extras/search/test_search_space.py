"""The space: what is refused, and that every suggestion is one of it."""

from pathlib import Path

import optuna
import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from project.errors import UserError
from project.extras.search.space import Parameter, Space, label, put, read_space

OPTIMIZER = "model.optimizer: {choice: {sgd: {class_path: torch.optim.SGD}, adamw: torch.optim.AdamW}}\n"


def space_of(text: str, folder: Path) -> Space:
    (folder / "space.yaml").write_text(text)
    return read_space(folder / "space.yaml")


def suggest(space: Space, seed: int) -> dict:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return space.suggest(study.ask())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold keys"),
        ("- a", "must hold keys"),
        ("a: [", "no valid YAML"),
        ("a: {float: [0, 1]}\na: {float: [0, 2]}", "a is there twice"),
        ("a: 3", "give a range or a choice"),
        ("a: {}", "one of float, log_float"),
        ("a: {float: [0, 1], int: [0, 1]}", "only one of"),
        ("a: {flot: [0, 1]}", "there is no 'flot'; did you mean float?"),
        ("a: {float: [0, 1], zzz: 1}", "there is no 'zzz'; there are float"),
        ("a: {float: [1, 1]}", "the range from 1 to 1 is empty"),
        ("a: {float: [2, 1]}", "the range from 2 to 1 is empty"),
        ("a: {float: [1]}", "needs its two ends"),
        ("a: {float: 1}", "needs its two ends"),
        ("a: {float: [x, 1]}", "'x' is no number"),
        ("a: {float: [true, 3]}", "True is no number"),
        ("a: {float: [0, .inf]}", "inf is no number"),
        ("a: {int: [0.5, 3]}", "no whole number; use float"),
        ("a: {log_float: [0, 1]}", "must lie above 0, and begins at 0"),
        ("a: {log_int: [-1, 4]}", "must lie above 0, and begins at -1"),
        ("a: {log_float: [1, 10], step: 1}", "a log range has no step"),
        ("a: {float: [0, 1], step: 0}", "step must be above 0"),
        ("a: {float: [0, 1], step: 2}", "step must be above 0"),
        ("a: {int: [1, 10], step: 4}", "steps of 4 from 1 do not meet 10"),
        ("a: {choice: []}", "a choice of 0 is none"),
        ("a: {choice: [1]}", "a choice of 1 is none"),
        ("a: {choice: 3}", "choice needs a list"),
        ("a: {choice: [1, 2, 1]}", "a choice is there twice"),
        ("a: {choice: [1, 2], step: 1}", "a choice has no step"),
        ("a: {float: [0, 1], when: b}", "when needs a key and its choice"),
        ("a: {float: [0, 1], when: {a: 1}}", "cannot depend on itself"),
        ("a: {float: [0, 1], when: {b: 1}}", "when: b is not in the space"),
        ("a: {float: [0, 1], when: {b: 1}}\nb: {choice: [1, 2]}", "when: b stands after it; move it up"),
        ("a: {choice: [1, 2], when: {b: 1}}\nb: {choice: [1, 2], when: {a: 1}}", "when: b stands after it"),
        ("bcd: {choice: [1, 2]}\na: {float: [0, 1], when: {bcb: 1}}", "did you mean bcd?"),
        ("b: {float: [0, 1]}\na: {float: [0, 1], when: {b: 1}}", "b is a range"),
        ("b: {choice: [1, 2]}\na: {float: [0, 1], when: {b: 3}}", "b has no choice '3'; there are 1, 2"),
        ("b: {choice: [1, 2]}\na: {float: [0, 1], when: {b: []}}", "names no choice"),
        ("a.b: {float: [0, 1]}\na: {choice: [1, 2]}", "a must stand before a.b"),
    ],
)
def test_what_is_refused(text, words, tmp_path) -> None:
    with pytest.raises(UserError) as caught:
        space_of(text, tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_conditions_that_can_never_hold_together(tmp_path) -> None:
    text = "a: {choice: [1, 2]}\nb: {choice: [1, 2], when: {a: 1}}\nc: {float: [0, 1], when: {b: 1, a: 2}}"
    with pytest.raises(UserError, match="c: its conditions can never hold together"):
        list(space_of(text, tmp_path).candidates())


def test_of_several_choices_the_one_that_all_conditions_allow_is_tried(tmp_path) -> None:
    text = "a: {choice: [1, 2]}\nb: {choice: [1, 2], when: {a: 2}}\nc: {float: [0, 1], when: {b: 1, a: [1, 2]}}"
    tried = [values for key, _, values in space_of(text, tmp_path).candidates() if key == "c"]
    assert tried == [{"a": "2", "b": "1", "c": 0.0}, {"a": "2", "b": "1", "c": 1.0}]


def test_a_file_that_is_missing() -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_space(Path("nowhere.yaml"))


def test_conditions_leave_out_what_does_not_apply(tmp_path) -> None:
    space = space_of(
        OPTIMIZER + "model.optimizer.init_args.momentum: {float: [0.8, 0.9], when: {model.optimizer: sgd}}", tmp_path
    )
    seen = set()
    for seed in range(20):
        values = suggest(space, seed)
        optimizer = space.settings(values)["model"]["optimizer"]
        seen.add(values["model.optimizer"])
        if values["model.optimizer"] == "sgd":
            assert optimizer["class_path"] == "torch.optim.SGD" and 0.8 <= optimizer["init_args"]["momentum"] <= 0.9
        else:
            assert optimizer == "torch.optim.AdamW" and "model.optimizer.init_args.momentum" not in values
    assert seen == {"sgd", "adamw"}


def test_a_chain_of_conditions_ends_with_its_first(tmp_path) -> None:
    text = "a: {choice: [x, y]}\nb: {choice: [p, q], when: {a: x}}\nc: {int: [1, 9], when: {b: [p, q]}}"
    space = space_of(text, tmp_path)
    for seed in range(10):
        values = suggest(space, seed)
        assert ("b" in values) == ("c" in values) == (values["a"] == "x")


def test_an_argument_makes_room_in_a_class_given_by_its_path() -> None:
    config = {"model": {"optimizer": "torch.optim.SGD"}}
    put(config, "model.optimizer.init_args.momentum", 0.9)
    assert config == {"model": {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"momentum": 0.9}}}}


def test_choices_are_not_changed_by_what_is_put_into_them(tmp_path) -> None:
    space = space_of(
        OPTIMIZER + "model.optimizer.init_args.momentum: {float: [0.8, 0.9], when: {model.optimizer: sgd}}", tmp_path
    )
    space.settings({"model.optimizer": "sgd", "model.optimizer.init_args.momentum": 0.85})
    assert space.parameters[0].choices["sgd"] == {"class_path": "torch.optim.SGD"}


def test_every_candidate_is_offered_with_its_conditions_met(tmp_path) -> None:
    space = space_of(OPTIMIZER + "m: {float: [0.8, 0.9], when: {model.optimizer: adamw}}", tmp_path)
    offered = [(key, value) for key, value, _ in space.candidates()]
    assert offered == [("model.optimizer", "sgd"), ("model.optimizer", "adamw"), ("m", 0.8), ("m", 0.9)]
    assert [values for key, _, values in space.candidates() if key == "m"] == [
        {"model.optimizer": "adamw", "m": m} for m in (0.8, 0.9)
    ]


def test_numbers_that_yaml_takes_for_text(tmp_path) -> None:
    parameter = space_of("model.lr: {log_float: [1e-4, 1e-1]}", tmp_path).parameters[0]
    assert (parameter.low, parameter.high) == (0.0001, 0.1)


def test_labels_of_a_plain_list(tmp_path) -> None:
    choices = space_of("a: {choice: [32, null, true, [1, 2], {x: 1}]}", tmp_path).parameters[0].choices
    assert choices == {"32": 32, "null": None, "true": True, "[1, 2]": [1, 2], "{x: 1}": {"x": 1}}


@pytest.mark.parametrize("name", ["basic", "wide"])
def test_shipped_spaces_are_read(name) -> None:
    assert len(read_space(ROOT / "configs" / "search" / f"{name}.yaml").parameters) >= 4


names = st.text("abcd", min_size=1, max_size=4)
ends = st.tuples(st.integers(-50, 50), st.integers(1, 50)).map(lambda pair: (pair[0], pair[0] + pair[1]))
plain = st.none() | st.booleans() | st.integers(-9, 9) | names
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@st.composite
def spaces(draw) -> Space:
    parameters: list[Parameter] = []
    for key in draw(st.lists(names, min_size=1, max_size=5, unique=True)):
        choices = [parameter for parameter in parameters if parameter.choices]
        when = {}
        if choices and draw(st.booleans()):
            other = draw(st.sampled_from(choices))
            when = {other.key: draw(st.lists(st.sampled_from(sorted(other.choices)), min_size=1, unique=True))}
        kind = draw(st.sampled_from(["float", "log_float", "int", "log_int", "choice"]))
        if kind == "choice":
            given = draw(st.lists(values, min_size=2, max_size=4, unique_by=label))
            parameters.append(Parameter(key, kind, choices={label(value): value for value in given}, when=when))
        else:
            low, high = draw(ends)
            low, high = (abs(low) + 1, abs(low) + 1 + high - low) if kind.startswith("log") else (low, high)
            step = draw(st.sampled_from([None, 1])) if not kind.startswith("log") else None
            parameters.append(Parameter(key, kind, low, high, step, when=when))
    return Space(parameters)


@settings(max_examples=80, deadline=None)
@given(spaces(), st.integers(0, 1000))
def test_every_suggestion_lies_in_the_space_and_survives_yaml(space, seed) -> None:
    chosen = suggest(space, seed)
    for parameter in space.parameters:
        holds = all(chosen.get(key) in labels for key, labels in parameter.when.items())
        assert (parameter.key in chosen) == holds
        if not holds:
            continue
        value = chosen[parameter.key]
        if parameter.kind == "choice":
            assert value in parameter.choices
        else:
            assert parameter.low <= value <= parameter.high
            assert isinstance(value, int) or not parameter.kind.endswith("int")
            assert not parameter.step or value == int(value)
    config = space.settings(chosen)
    assert yaml.safe_load(yaml.safe_dump(config)) == config
    assert config == {
        p.key: p.choices[chosen[p.key]] if p.choices else chosen[p.key] for p in space.parameters if p.key in chosen
    }


@settings(max_examples=40, deadline=None)
@given(spaces())
def test_a_space_can_be_written_and_read_again(tmp_path_factory, space) -> None:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(yaml.safe_dump(space.spec(), sort_keys=False))
    assert read_space(path).spec() == space.spec()


def test_labels_that_yaml_takes_for_truth_or_nothing_can_be_named(tmp_path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text(
        "a: {choice: {on: 0.1, off: 0.0}}\nb: {choice: {null: null, sgd: x}}\nc: {float: [0, 1], when: {a: on, b: null}}"
    )
    assert list(read_space(path).parameters[2].when.values()) == [["true"], ["null"]]
