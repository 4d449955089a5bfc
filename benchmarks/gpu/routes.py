"""By which kernel mlp_ext multiplies, where its heuristics are not to decide."""

import contextlib
import os
from collections.abc import Callable, Iterator

# MLP_EXT_FORCE, by what the tables call it.
ROUTES = {"mlp_ext by its kernels": "own", "mlp_ext by cuBLASLt": "library"}


@contextlib.contextmanager
def forced(route: str) -> Iterator[None]:
    """MLP_EXT_FORCE is `route` within."""
    before = os.environ.get("MLP_EXT_FORCE")
    os.environ["MLP_EXT_FORCE"] = route
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLP_EXT_FORCE"]
        else:
            os.environ["MLP_EXT_FORCE"] = before


def by(route: str, work: Callable[[], object]) -> Callable[[], object]:
    def call() -> object:
        with forced(route):
            return work()

    return call
