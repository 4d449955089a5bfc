"""By which kernel mlp_ext multiplies, where its heuristics are not to decide."""

import contextlib
import os
from collections.abc import Iterator

# MLP_EXT_FORCE, by what the tables call it.
ROUTES = {"mlp_ext by its kernels": "own", "mlp_ext by cuBLASLt": "library"}


@contextlib.contextmanager
def forced(route: str) -> Iterator[None]:
    """MLP_EXT_FORCE is `route` within, or, as a decorator, in each call."""
    before = os.environ.get("MLP_EXT_FORCE")
    os.environ["MLP_EXT_FORCE"] = route
    try:
        yield
    finally:
        if before is None:
            del os.environ["MLP_EXT_FORCE"]
        else:
            os.environ["MLP_EXT_FORCE"] = before
