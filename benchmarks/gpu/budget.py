"""The time that a stage may take."""

import time
from collections.abc import Callable


class Budget:
    """What is asked for after the time is spent is left out, and `left_out` has its name."""

    def __init__(self, seconds: float, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds, self._clock, self._start = seconds, clock, clock()
        self.left_out: list[str] = []

    @property
    def left(self) -> float:
        return self.seconds - (self._clock() - self._start)

    def has_time_for(self, name: str, seconds: float = 0.0) -> bool:
        """Whether work of about so many seconds may start."""
        if self.left > seconds:
            return True
        self.left_out.append(name)
        return False

    def summary(self) -> str:
        if not self.left_out:
            return f"Finished with {max(self.left, 0):.0f} of {self.seconds:.0f} s to spare."
        return (
            f"The {self.seconds:.0f} s were spent; left out ({len(self.left_out)}): "
            f"{', '.join(self.left_out)}"
        )
