"""The space of a search (advice A1): a YAML file of config keys, each with its range or its choices."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from project.errors import UserError

if TYPE_CHECKING:  # it is an extra, and its absence is said by the command
    import optuna

RANGES = ("float", "log_float", "int", "log_int")
KINDS = (*RANGES, "choice")
Values = dict[str, float | int | str]  # key -> a number of its range, or the label of its choice


@dataclass(frozen=True)
class Parameter:
    """One searched key.

    Attributes:
        key: Of the config, such as model.lr.
        kind: float, log_float, int, log_int or choice.
        low, high: Ends of the range, both included.
        step: Distance of the values of a float or int range; None for a continuous one, and 1 for whole numbers.
        choices: Label -> value; labels are what conditions and tables show.
        when: Key of an earlier choice -> the labels at which this key is searched; at others it keeps the config's value.
    """

    key: str
    kind: str
    low: float = 0.0
    high: float = 0.0
    step: float | None = None
    choices: dict[str, Any] = field(default_factory=dict)
    when: dict[str, list[str]] = field(default_factory=dict)

    def active(self, values: Mapping[str, Any]) -> bool:
        """Whether the conditions hold; one on a key that is itself left out does not."""
        return all(values.get(key) in labels for key, labels in self.when.items())

    def suggest(self, trial: "optuna.Trial") -> float | int | str:
        if self.kind == "choice":
            return trial.suggest_categorical(self.key, list(self.choices))
        log = self.kind.startswith("log")
        if self.kind.endswith("float"):
            return trial.suggest_float(self.key, self.low, self.high, step=self.step, log=log)
        return trial.suggest_int(self.key, int(self.low), int(self.high), step=int(self.step or 1), log=log)

    def candidates(self) -> list[Any]:
        """What is tried on the parser: every choice, and both ends of a range."""
        whole = self.kind.endswith("int")
        return list(self.choices) if self.choices else [int(end) if whole else end for end in (self.low, self.high)]

    def spec(self) -> dict[str, Any]:
        """As it stands in the file, written one way only, so that two spaces can be compared."""
        found: dict[str, Any] = {self.kind: self.choices or [self.low, self.high]}
        return found | ({"step": self.step} if self.step else {}) | ({"when": self.when} if self.when else {})


class Space:
    """The searched keys, in the order of the file."""

    def __init__(self, parameters: list[Parameter]) -> None:
        self.parameters = parameters
        self.keys = [parameter.key for parameter in parameters]

    def suggest(self, trial: "optuna.Trial") -> Values:
        """Let the sampler choose a value for every key whose conditions hold."""
        values: Values = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.key] = parameter.suggest(trial)
        return values

    def settings(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Chosen values as nested configuration, as `fit --config` reads it."""
        config: dict[str, Any] = {}
        for parameter in self.parameters:
            if parameter.key in values:
                value = values[parameter.key]
                put(config, parameter.key, parameter.choices[value] if parameter.choices else value)
        return config

    def spec(self) -> dict[str, Any]:
        return {parameter.key: parameter.spec() for parameter in self.parameters}

    def candidates(self) -> Iterator[tuple[str, Any, Values]]:
        """(key, value, values of all keys) for every candidate, with the conditions of its key met."""
        for parameter in self.parameters:
            for value in parameter.candidates():
                yield parameter.key, value, self._complete({parameter.key: value})

    def _complete(self, fixed: Values) -> Values:
        allowed = {key: [value] for key, value in fixed.items()}
        for parameter in reversed(self.parameters):  # conditions look back only
            if parameter.key in allowed:
                for key, labels in parameter.when.items():
                    allowed[key] = [item for item in allowed.get(key, labels) if item in labels]
                    if not allowed[key]:
                        raise UserError(f"space: {next(iter(fixed))}: its conditions can never hold together")
        values: Values = {}
        for parameter in self.parameters:
            if parameter.active(values):
                values[parameter.key] = allowed.get(parameter.key, parameter.candidates())[0]
        return values


def put(config: dict[str, Any], key: str, value: Any) -> None:
    """Set a.b.c in nested configuration; a class given by its path alone makes room for its arguments.

    Raises:
        UserError: a or a.b is there already, and has nothing inside.
    """
    *folders, last = key.split(".")
    for i, name in enumerate(folders):
        if isinstance(config.get(name), str):
            config[name] = {"class_path": config[name]}
        config = config.setdefault(name, {})
        if not isinstance(config, dict):
            outer = ".".join(folders[: i + 1])
            raise UserError(f"space: {key} lies inside {outer}, which can be {label(config)}: give it a `when`")
    config[last] = _copy(value)


def leaves(value: Any, prefix: str = "") -> Iterator[str]:
    """The keys that nested settings give a value to, as a.b.c."""
    if not isinstance(value, dict):
        yield prefix
        return
    for name, inner in value.items():
        yield from leaves(inner, f"{prefix}.{name}" if prefix else str(name))


def _copy(value: Any) -> Any:
    """Without aliases: YAML would write an anchor for a list used twice, and `put` would change the choice."""
    if isinstance(value, dict):
        return {key: _copy(inner) for key, inner in value.items()}
    return [_copy(inner) for inner in value] if isinstance(value, list) else value


def read_space(path: Path) -> Space:
    """Read a space from a YAML file and check all that needs no parser.

    Raises:
        UserError: for a file that is none, an empty range, log over zero, a choice of one, a condition that cannot be.
    """
    try:
        content = yaml.load(path.read_text(), Loader=_Loader)
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"space: {path} cannot be read ({getattr(error, 'strerror', None) or 'not a text file'})"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"space: {path} is no valid YAML: {' '.join(str(error).split())[:200]}") from error
    try:
        content = _copy(content)
    except RecursionError as error:
        raise UserError(f"space: {path} refers to itself") from error
    if not isinstance(content, dict) or not content:
        raise UserError(f"space: {path} must hold keys with ranges, such as `model.lr: {{log_float: [0.0001, 0.1]}}`")
    parameters: list[Parameter] = []
    for key, spec in content.items():
        parameters.append(_parameter(str(key), spec, parameters, [str(other) for other in content]))
    return Space(parameters)


def _parameter(key: str, spec: Any, before: list[Parameter], keys: list[str]) -> Parameter:
    if not isinstance(spec, dict):
        raise UserError(f"space: {key}: give a range or a choice, such as {{log_float: [0.0001, 0.1]}}, not {spec!r}")
    kinds = [name for name in spec if name in KINDS]
    if unknown := [str(name) for name in spec if name not in (*KINDS, "step", "when")]:
        near = get_close_matches(unknown[0], (*KINDS, "step", "when"), n=1)
        raise UserError(
            f"space: {key}: there is no {unknown[0]!r}; {f'did you mean {near[0]}?' if near else _one_of(KINDS)}"
        )
    if len(kinds) != 1:
        raise UserError(f"space: {key}: {'only one' if kinds else 'one'} of {', '.join(KINDS)} is needed")
    for other in before:
        if other.key.startswith(f"{key}."):
            raise UserError(f"space: {key} must stand before {other.key}, which it would overwrite")
    kind, when = kinds[0], _when(key, spec.get("when"), before, keys)
    if kind == "choice":
        if "step" in spec:
            raise UserError(f"space: {key}: a choice has no step")
        return Parameter(key, kind, choices=_choices(key, spec[kind]), when=when)
    low, high, step = _range(key, kind, spec[kind], spec.get("step"))
    return Parameter(key, kind, low, high, step, when=when)


def _range(key: str, kind: str, ends: Any, step: Any) -> tuple[float, float, float | None]:
    if not isinstance(ends, list) or len(ends) != 2:
        raise UserError(f"space: {key}: {kind} needs its two ends, such as [1, 10], not {ends!r}")
    low, high = (_number(key, kind, end) for end in ends)
    if not low < high:
        raise UserError(f"space: {key}: the range from {ends[0]} to {ends[1]} is empty; give the smaller end first")
    if kind.startswith("log") and low <= 0:
        raise UserError(f"space: {key}: a log range must lie above 0, and begins at {ends[0]}")
    if step is None:
        return low, high, None
    if kind.startswith("log"):
        raise UserError(f"space: {key}: a log range has no step")
    step = _number(key, kind, step)
    if not 0 < step <= high - low:
        raise UserError(
            f"space: {key}: step must be above 0 and at most the range's width {high - low:g}, not {step:g}"
        )
    count = (high - low) / step
    if abs(count - round(count)) > 1e-6:
        raise UserError(
            f"space: {key}: steps of {step:g} from {low:g} do not meet {high:g}; give an end that they meet"
        )
    return low, high, step


def _number(key: str, kind: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # YAML takes 1e-4 for text
    except (TypeError, ValueError):
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"space: {key}: {value!r} is no number")
    if kind.endswith("int") and number != int(number):
        raise UserError(f"space: {key}: {value} is no whole number; use {kind.replace('int', 'float')}")
    if kind.endswith("int") and abs(number) > 2**53:
        raise UserError(f"space: {key}: {value} is too large to count by ones; use {kind.replace('int', 'float')}")
    return int(number) if kind.endswith("int") else number


def _choices(key: str, given: Any) -> dict[str, Any]:
    """Label -> value; the labels of a plain list are its values."""
    if isinstance(given, dict):
        choices = {label(name): value for name, value in given.items()}
    elif isinstance(given, list):
        choices = {label(value): value for value in given}
    else:
        raise UserError(f"space: {key}: choice needs a list of values, or labels with values, not {given!r}")
    if len(choices) != len(given):
        raise UserError(f"space: {key}: a choice is there twice")
    if len(choices) < 2:
        raise UserError(
            f"space: {key}: a choice of {len(choices)} is none; give two or more, or set the key in the config"
        )
    return choices


def label(value: Any) -> str:
    """A value as a table shows it: 64, null, true (also for on and yes, which YAML takes for it), [1, 2]; a text as it is."""
    if isinstance(value, str):
        return value
    text = yaml.safe_dump(value, default_flow_style=True, width=1_000_000, sort_keys=False)
    return " ".join(text.removesuffix("...\n").split())


def _when(key: str, given: Any, before: list[Parameter], keys: list[str]) -> dict[str, list[str]]:
    if given is None:
        return {}
    if not isinstance(given, dict) or not given:
        raise UserError(
            f"space: {key}: when needs a key and its choice, such as {{model.optimizer: sgd}}, not {given!r}"
        )
    found = {}
    for other, labels in given.items():
        parameter = next((parameter for parameter in before if parameter.key == other), None)
        if parameter is None:
            if other == key:
                raise UserError(f"space: {key}: it cannot depend on itself")
            where = "stands after it; move it up" if other in keys else "is not in the space"
            near = get_close_matches(str(other), keys, n=1) if other not in keys else []
            raise UserError(f"space: {key}: when: {other} {where}" + (f"; did you mean {near[0]}?" if near else ""))
        if parameter.kind != "choice":
            raise UserError(f"space: {key}: when: {other} is a range; a condition needs a choice")
        wanted = [label(item) for item in (labels if isinstance(labels, list) else [labels])]
        if unknown := [item for item in wanted if item not in parameter.choices]:
            raise UserError(f"space: {key}: when: {other} has no choice {unknown[0]!r}; {_one_of(parameter.choices)}")
        if not wanted:
            raise UserError(f"space: {key}: when: {other} names no choice")
        found[str(other)] = wanted
    return found


def _one_of(names: Any) -> str:
    return "there are " + ", ".join(names)


class _Loader(yaml.SafeLoader):
    """A key given twice is an error: YAML would keep the last one without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise yaml.YAMLError(f"{twice} is there twice")
        return super().construct_mapping(node, deep)
