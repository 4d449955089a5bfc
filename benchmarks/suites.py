"""The suites by name. A new one is a file bench_<name>.py with cases(full), and its name here."""

import importlib

from .harness import Case

SUITES = (
    "loop",
    "train_step",
    "epoch",
    "linear",
    "gemm",
    "optimizers",
    "rules",
    "losses",
    "stacks",
    "dtypes",
    "registration",
    "processes",
)


def cases_of(suite: str, full: bool) -> list[Case]:
    module = importlib.import_module(f".bench_{suite}", __package__)
    return list(module.cases(full))
