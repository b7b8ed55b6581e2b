"""The space: what is refused, and that every suggestion is one of it."""

import optuna
import pytest
import yaml
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st

from project.errors import UserError
from project.extras.search.space import Space, label, read_space

OPTIMIZER = "model.optimizer: {choice: {sgd: {class_path: torch.optim.SGD}, adamw: {class_path: torch.optim.AdamW}}}\n"
MOMENTUM = "model.optimizer.init_args.momentum: {float: [0.8, 0.9], when: {model.optimizer: sgd}}\n"


@pytest.fixture
def space_of(tmp_path):
    def read(text: str) -> Space:
        (tmp_path / "space.yaml").write_text(text)
        return read_space(tmp_path / "space.yaml")

    return read


def suggest(space: Space, seed: int) -> dict:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    return space.suggest(study.ask())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must hold keys"),
        ("- a", "must hold keys"),
        ("a: [", "cannot be read"),
        ("a: 3", "give one of float, log_float"),
        ("a: {}", "give one of"),
        ("a: {float: [0, 1], int: [0, 1]}", "give one of"),
        ("a: {flot: [0, 1]}", "give one of"),
        ("a: {float: [0, 1], zzz: 1}", "give one of"),
        ("a: {float: [2, 1]}", "low <= high"),
        ("a: {float: [1]}", "needs two ends"),
        ("a: {float: 1}", "needs two ends"),
        ("a: {float: [x, 1]}", "needs two ends"),
        ("a: {float: [true, 3]}", "needs two ends"),
        ("a: {int: [0.5, 3]}", "needs two ends"),
        ("a: {log_float: [0, 1]}", "needs two ends"),
        ("a: {log_int: [-1, 4]}", "needs two ends"),
        ("a: {log_float: [1, 10], step: 1}", "needs two ends"),
        ("a: {float: [0, 1], step: 0}", "needs two ends"),
        ("a: {choice: []}", "two or more"),
        ("a: {choice: [1, 1]}", "two or more"),
        ("a: {choice: [1, 2]}\nb: {int: [1, 2], when: {a: 3}}", "b: when: a is 1, 2, never 3"),
        ("b: {int: [1, 2], when: {a: 1}}\na: {choice: [1, 2]}", "no choice that stands above it"),
        ("a: {int: [1, 2]}\nb: {int: [1, 2], when: {a: 1}}", "no choice that stands above it"),
        ("a.b: {float: [0, 1]}\na: {choice: [1, 2]}", "a must stand before a.b"),
    ],
)
def test_what_is_refused(text, words, space_of) -> None:
    with pytest.raises(UserError) as caught:
        space_of(text)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_missing(tmp_path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_space(tmp_path / "nowhere.yaml")


def test_a_key_inside_a_value_without_keys_needs_a_condition(space_of) -> None:
    space = space_of(
        "model.schedule: {choice: {none: null, x: {class_path: X}}}\nmodel.schedule.init_args.y: {int: [0, 1]}"
    )
    with pytest.raises(UserError, match="which can be null: give it a `when`"):
        space.settings({"model.schedule": "none", "model.schedule.init_args.y": 0})


def test_conditions_leave_out_what_does_not_apply(space_of) -> None:
    space = space_of(OPTIMIZER + MOMENTUM)
    seen = set()
    for seed in range(20):
        values = suggest(space, seed)
        optimizer = space.settings(values)["model"]["optimizer"]
        seen.add(values["model.optimizer"])
        if values["model.optimizer"] == "sgd":
            assert optimizer["class_path"] == "torch.optim.SGD" and 0.8 <= optimizer["init_args"]["momentum"] <= 0.9
        else:
            assert optimizer == {"class_path": "torch.optim.AdamW"}
    assert seen == {"sgd", "adamw"}
    assert space.parameters[0].choices["sgd"] == {
        "class_path": "torch.optim.SGD"
    }  # not changed by what was put into it


def test_a_chain_of_conditions_ends_with_its_first(space_of) -> None:
    text = "a: {choice: [x, y]}\nb: {choice: [p, q], when: {a: x}}\nc: {int: [1, 9], when: {b: [p, q]}}"
    space = space_of(text)
    for seed in range(10):
        values = suggest(space, seed)
        assert ("b" in values) == ("c" in values) == (values["a"] == "x")


def test_every_candidate_is_offered_with_its_conditions_met(space_of) -> None:
    space = space_of("a: {choice: [x, y]}\nb: {choice: [p, q], when: {a: y}}\nc: {int: [1, 9], when: {b: [q]}}")
    assert [(key, value) for key, value, _ in space.candidates()] == [
        *(("a", "x"), ("a", "y"), ("b", "p"), ("b", "q"), ("c", 1), ("c", 9))
    ]
    assert [values for key, _, values in space.candidates() if key == "c"] == [
        {"a": "y", "b": "q", "c": c} for c in (1, 9)
    ]


def test_numbers_that_yaml_takes_for_text(space_of) -> None:
    assert space_of("model.lr: {log_float: [1e-4, 1e-1]}").parameters[0].range == {
        "low": 0.0001,
        "high": 0.1,
        "log": True,
    }


def test_labels_of_choices(space_of) -> None:
    choices = space_of("a: {choice: [32, null, true, [1, 2], {x: 1}]}").parameters[0].choices
    assert choices == {"32": 32, "null": None, "true": True, "[1, 2]": [1, 2], '{"x": 1}': {"x": 1}}
    named = space_of("a: {choice: {on: 0.1, off: 0.0}}\nb: {float: [0, 1], when: {a: on}}")
    assert named.parameters[1].when == {"a": ["true"]}


@pytest.mark.parametrize("name", ["basic", "folder", "wide"])
def test_shipped_spaces_are_read(name) -> None:
    assert len(read_space(ROOT / "configs" / "search" / f"{name}.yaml").parameters) >= 4


names = st.text("abcd", min_size=1, max_size=4)
plain = st.none() | st.booleans() | st.integers(-9, 9) | names
values = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3))


@st.composite
def spaces(draw) -> dict:
    """The content of a file of a space."""
    content: dict = {}
    for key in draw(st.lists(names, min_size=1, max_size=5, unique=True)):
        kind = draw(st.sampled_from(["float", "log_float", "int", "log_int", "choice"]))
        if kind == "choice":
            spec = {kind: draw(st.lists(values, min_size=2, max_size=4, unique_by=label))}
        else:
            low = draw(st.integers(1 if kind.startswith("log") else -50, 50))
            spec = {kind: [low, low + draw(st.integers(1, 50))]}
            if not kind.startswith("log") and draw(st.booleans()):
                spec["step"] = 1
        choices = [other for other in content if "choice" in content[other]]
        if choices and draw(st.booleans()):
            other = draw(st.sampled_from(choices))
            labels = st.sampled_from([label(value) for value in content[other]["choice"]])
            spec["when"] = {other: draw(st.lists(labels, min_size=1, unique=True))}
        content[key] = spec
    return content


@settings(max_examples=15, deadline=None)
@given(spaces(), st.integers(0, 1000))
def test_every_suggestion_lies_in_the_space_and_survives_yaml(tmp_path_factory, content, seed) -> None:
    path = tmp_path_factory.mktemp("space") / "space.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    space = read_space(path)
    chosen = suggest(space, seed)
    expected = {}
    for key, spec in content.items():
        holds = all(chosen.get(other) in labels for other, labels in spec.get("when", {}).items())
        assert (key in chosen) == holds
        if not holds:
            continue
        expected[key] = value = chosen[key]
        kind = next(iter(spec))
        if kind == "choice":
            expected[key] = next(choice for choice in spec[kind] if label(choice) == value)
        else:
            assert spec[kind][0] <= value <= spec[kind][1]
            assert isinstance(value, int) or not kind.endswith("int")
            assert "step" not in spec or value == int(value)
    config = space.settings(chosen)
    assert config == expected and yaml.safe_load(yaml.safe_dump(config)) == config
