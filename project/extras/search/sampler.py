"""The sampler of a search: independent draws in every process, and the same again in every run."""

import warnings
from typing import Any

import optuna
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial


class Seeded(BaseSampler):
    """A sampler whose draws follow from (seed, number of the trial, what is known): processes draw differently, each run alike."""

    def __init__(self, kind: str, seed: int) -> None:
        self.kind, self.seed = kind, seed
        self._make(0)

    def _make(self, number: int) -> None:
        seed = self.seed * 1_000_003 + number & 0x7FFFFFFF
        # TPE: Watanabe 2023, arXiv:2304.11127. Multivariate, in groups, because conditions divide the space.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.inner = (
                RandomSampler(seed)
                if self.kind == "random"
                else TPESampler(
                    seed=seed, multivariate=True, group=True, constant_liar=True, warn_independent_sampling=False
                )
            )

    def before_trial(self, study: optuna.Study, trial: FrozenTrial) -> None:
        self._make(trial.number)

    def infer_relative_search_space(self, study: optuna.Study, trial: FrozenTrial) -> dict[str, Any]:
        return self.inner.infer_relative_search_space(study, trial)

    def sample_relative(self, study: optuna.Study, trial: FrozenTrial, search_space: dict[str, Any]) -> dict[str, Any]:
        return self.inner.sample_relative(study, trial, search_space)

    def sample_independent(
        self, study: optuna.Study, trial: FrozenTrial, param_name: str, param_distribution: Any
    ) -> Any:
        return self.inner.sample_independent(study, trial, param_name, param_distribution)
