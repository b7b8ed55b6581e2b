"""The space of a search (advice A1): a YAML file of config keys, each with its range or its choices."""

import copy
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
import yaml
from optuna.distributions import FloatDistribution, IntDistribution

from project.errors import UserError

KINDS = ("float", "log_float", "int", "log_int", "choice")


@dataclass(frozen=True)
class Parameter:
    """One searched key.

    Attributes:
        key: Of the config, such as model.lr.
        range: What it is drawn from: numbers, both ends included; None for a choice.
        choices: Label -> value; empty for a range.
        when: Key of an earlier choice -> the labels at which this key is searched; else it keeps the config's value.
    """

    key: str
    range: FloatDistribution | IntDistribution | None
    choices: dict[str, Any]
    when: dict[str, list[str]]

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether the conditions hold; one on a key that is itself left out does not."""
        return all(values.get(key) in labels for key, labels in self.when.items())

    def suggest(self, trial: optuna.Trial) -> float | int | str:
        """A number of the range, or the label of a choice."""
        if self.range is None:
            return trial.suggest_categorical(self.key, list(self.choices))
        suggest = trial.suggest_int if isinstance(self.range, IntDistribution) else trial.suggest_float
        return suggest(self.key, self.range.low, self.range.high, step=self.range.step, log=self.range.log)

    def candidates(self) -> list[Any]:
        """Every choice, or both ends of the range."""
        return [self.range.low, self.range.high] if self.range else list(self.choices)


@dataclass(frozen=True)
class Space:
    """The searched keys, in the order of the file, and the file's content."""

    parameters: list[Parameter]
    content: dict[str, Any]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Let the sampler choose a value for every key whose conditions hold."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers and labels as nested configuration, as `fit --config` reads it."""
        config: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.key in values:
                value = values[parameter.key]
                put(config, parameter.key, parameter.choices.get(value, value))
        return config

    def candidates(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """(key, value, values of this key and those that it depends on) for every candidate of every key."""
        for wanted in self.parameters:
            for value in wanted.candidates():
                values = {wanted.key: value}
                for parameter in reversed(self.parameters):  # conditions look back only
                    if parameter.key in values:
                        values = {key: labels[0] for key, labels in parameter.when.items()} | values
                yield wanted.key, value, values


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a.b.c in nested configuration.

    Raises:
        UserError: a or a.b has a value that has nothing inside.
    """
    *outer, last = key.split(".")
    for name in outer:
        config = config.setdefault(name, {})
        if not isinstance(config, dict):
            raise UserError(
                f"space: {key} lies inside {name}, which can be {label(config)}: "
                "give it a `when`, and write a class as {class_path: ...}"
            )
    config[last] = copy.deepcopy(value)


def label(value: Any) -> str:
    """A value as conditions and tables name it: 64, null, true (also for YAML's on and yes), [1, 2]; a text as it is."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def read_space(path: Path) -> Space:
    """Read a space from a YAML file.

    Raises:
        UserError: for a missing file, an empty range, a choice of one, a condition on something that is not a choice.
    """
    try:
        content = yaml.safe_load(path.read_text())
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"space: {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise UserError(f"space: {path} must hold keys with ranges, such as `model.lr: {{log_float: [0.0001, 0.1]}}`")
    found: dict[str, Parameter] = {}
    for key, spec in content.items():
        kinds = [name for name in spec if name in KINDS] if isinstance(spec, dict) else []
        if len(kinds) != 1 or set(spec) - {kinds[0], "step", "when"}:
            raise UserError(f"space: {key}: give one of {', '.join(KINDS)}, and if need be step and when, not {spec!r}")
        if inner := [other for other in found if other.startswith(f"{key}.")]:
            raise UserError(f"space: {key} must stand before {inner[0]}, which it would overwrite")
        choices = _choices(key, spec["choice"]) if kinds == ["choice"] else {}
        numbers = None if choices else _range(key, kinds[0], spec[kinds[0]], spec.get("step"))
        found[key] = Parameter(key, numbers, choices, _when(key, spec.get("when") or {}, found))
    return Space(list(found.values()), content)


def _range(key: str, kind: str, ends: Any, step: Any) -> FloatDistribution | IntDistribution:
    number, distribution = (int, IntDistribution) if kind.endswith("int") else (float, FloatDistribution)
    try:
        low, high = (number(str(end)) for end in ends)  # as text, which YAML takes 1e-4 for, and int refuses 0.5 in
        options = {} if step is None else {"step": number(str(step))}
        found = distribution(low, high, log=kind.startswith("log"), **options)
        if found.high != high:
            raise ValueError(f"steps of {step} do not meet the upper end")
    except (TypeError, ValueError) as error:
        raise UserError(f"space: {key}: {kind} needs two ends, such as [1, 10], not {ends!r} ({error})") from error
    return found


def _choices(key: str, given: Any) -> dict[str, Any]:
    """Label -> value; the labels of a plain list are its values."""
    pairs = given.items() if isinstance(given, dict) else ((value, value) for value in given or ())
    choices = {label(name): value for name, value in pairs}
    if len(choices) < 2:
        raise UserError(f"space: {key}: a choice needs two or more different values, not {given!r}")
    return choices


def _when(key: str, given: dict[str, Any], before: dict[str, Parameter]) -> dict[str, list[str]]:
    found = {}
    for other, wanted in given.items():
        found[other] = [label(item) for item in (wanted if isinstance(wanted, list) else [wanted])]
        choices = before[other].choices if other in before else {}
        if not found[other] or set(found[other]) - set(choices):
            known = f"has the choices {', '.join(choices)}" if choices else "is not a choice that stands above it"
            raise UserError(f"space: {key}: when: {other} {known}, not {label(wanted)}")
    return found
