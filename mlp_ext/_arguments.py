"""What to say about arguments of a wrong type."""

from torch import Tensor


def _is_number(value: object) -> bool:
    return hasattr(value, "__float__") or hasattr(value, "__index__")


_TESTS = {
    "a Tensor": lambda value: isinstance(value, Tensor),
    "a Tensor or None": lambda value: value is None or isinstance(value, Tensor),
    "an int": lambda value: hasattr(value, "__index__"),
    "a float": _is_number,
}

TENSOR, OPTIONAL, INT, FLOAT = _TESTS


def type_error(error: TypeError, function: str, **arguments: tuple[object, str]) -> TypeError:
    """What to raise for a TypeError of the compiled function.

    Args:
        error: what it raised.
        function: the name by which users know it.
        arguments: of each name, the value and what it has to be, one of the above.

    Returns:
        An error that names the first argument that is something else; `error` if none is, and so
        it was not about the arguments.
    """
    for name, (value, kind) in arguments.items():
        if not _TESTS[kind](value):
            return TypeError(
                f"mlp_ext.functional.{function}: {name} must be {kind}, not {type(value).__name__}"
            )
    return error
