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
        kind: float, int or categorical, as in Optuna's `suggest_float`.
        range: Further arguments of that: low and high (both included), step, log; or the labels of the choices.
        choices: Label -> value; empty for a range.
        when: Key of an earlier choice -> the labels at which this key is searched; else it keeps the config's value.
    """

    key: str
    kind: str
    range: dict[str, Any]
    choices: dict[str, Any]
    when: dict[str, list[str]]


@dataclass(frozen=True)
class Space:
    """The searched keys, in the order of the file, and the file's content."""

    parameters: list[Parameter]
    content: dict[str, Any]

    def suggest(self, trial: optuna.Trial) -> dict[str, Any]:
        """Let the sampler choose a number or a label for every key whose conditions hold."""
        values: dict[str, Any] = {}
        for parameter in self.parameters:
            if all(values.get(key) in labels for key, labels in parameter.when.items()):
                values[parameter.key] = getattr(trial, f"suggest_{parameter.kind}")(parameter.key, **parameter.range)
        return values

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Numbers and labels as nested configuration, as `fit --config` reads it.

        Raises:
            UserError: where a key lies inside another that has a value without keys.
        """
        config: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.key not in values:
                continue
            *outer, last = parameter.key.split(".")
            part = config
            for name in outer:
                part = part.setdefault(name, {})
                if not isinstance(part, dict):
                    where = (
                        f"{name}, which can be {label(part)}: give it a `when`, and write a class as class_path: ..."
                    )
                    raise UserError(f"space: {parameter.key} lies inside {where}")
            value = values[parameter.key]
            part[last] = copy.deepcopy(parameter.choices.get(value, value))
        return config

    def candidates(self) -> Iterator[tuple[str, Any, dict[str, Any]]]:
        """(key, value, values of it and of the keys that it depends on) for every choice, and both ends of a range."""
        for wanted in self.parameters:
            for value in wanted.choices or (wanted.range["low"], wanted.range["high"]):
                values = {wanted.key: value}
                for parameter in reversed(self.parameters):  # conditions look back only
                    if parameter.key in values:
                        values = {key: labels[0] for key, labels in parameter.when.items()} | values
                yield wanted.key, value, values


def label(value: Any) -> str:
    """A value as conditions and tables name it: 64, null, true (also for YAML's on and yes), [1, 2]; text as it is."""
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
        kind, when = kinds[0], _when(key, spec.get("when") or {}, found)
        if kind == "choice":
            choices = _choices(key, spec[kind])
            found[key] = Parameter(key, "categorical", {"choices": list(choices)}, choices, when)
        else:
            found[key] = Parameter(
                key, kind.removeprefix("log_"), _range(key, kind, spec[kind], spec.get("step")), {}, when
            )
    return Space(list(found.values()), content)


def _range(key: str, kind: str, ends: Any, step: Any) -> dict[str, Any]:
    number, distribution = (int, IntDistribution) if kind.endswith("int") else (float, FloatDistribution)
    try:
        low, high = (number(str(end)) for end in ends)  # as text, which YAML takes 1e-4 for
        found = {"low": low, "high": high, "log": kind.startswith("log")}
        found |= {} if step is None else {"step": number(str(step))}
        distribution(**found)
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
        if set(found[other]) - set(choices):
            known = ", ".join(choices) or "no choice that stands above it"
            raise UserError(f"space: {key}: when: {other} is {known}, never {label(wanted)}")
    return found
