"""Optimization: layers in order, parameter groups, freezing, optimizers, learning-rate schedules."""
# ruff: noqa: F401

from project.optim.freeze import Freeze
from project.optim.groups import group_table, param_groups
from project.optim.layers import layers
from project.optim.muon import Muon
from project.optim.rates import Length, PlannedRates, Warmup
from project.optim.schedules import (
    Constant,
    Cosine,
    Exponential,
    Interval,
    Lambda,
    Linear,
    MultiStep,
    OneCycle,
    PerGroup,
    Plateau,
    Schedule,
    Step,
)
from project.optim.swats import SWATS
