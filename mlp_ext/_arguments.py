"""What to say about arguments of a wrong type."""

_SHORT = (bool, int, float, str, type(None))


def type_error(function: str, **arguments) -> TypeError:
    """What to raise for arguments that the compiled function has refused by their types."""
    received = ", ".join(
        f"{name}={repr(value) if isinstance(value, _SHORT) else type(value).__name__}"
        for name, value in arguments.items()
    )
    return TypeError(f"mlp_ext.functional.{function} got arguments of a wrong type: {received}")
