"""What a disturbance is, and the tables that they are collected in."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Disturbance:
    act: Callable  # (world, random.Random): the same choices in both runs
    fits: Callable  # (plan) -> bool
    alone: bool = False  # no other disturbance in the case


def table():
    """({name: Disturbance}, a decorator that enters a function under its name)."""
    entries = {}

    def enter(fits=lambda plan: True, alone=False):
        def decorate(function):
            entries[function.__name__] = Disturbance(function, fits, alone)
            return function

        return decorate

    return entries, enter


def in_loop(plan):
    """TrainStep has no place between its backward pass and its update."""
    return plan.entry == "loop"


def reads_strides(plan):
    """torch's fused optimizers read each tensor as if its elements lay one after another (2.13)."""
    return not plan.optimizer["options"].get("fused")


def has_children(plan):
    """The modules are the same ones in both runs, and functions are not called by hand."""
    return plan.form not in ("merged", "functional", "mlp")


def both(*conditions):
    return lambda plan: all(condition(plan) for condition in conditions)
