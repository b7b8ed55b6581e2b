"""Optimization: parameter groups and learning-rate schedules."""

from project.optim.groups import param_groups
from project.optim.schedules import Cosine, OneCycle, Schedule

__all__ = ["Cosine", "OneCycle", "Schedule", "param_groups"]
