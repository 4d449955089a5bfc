"""The headers of torch and pybind11, read once a build and not once a file.

csrc/bindings/precompiled.h lists them. A compiler that is told `-include torch.h` takes torch.h.gch
beside it, if that was made with the same flags: so do GCC and clang. The sources include what they
use, as if there were none of this; without it they compile as well, and take three times as long.
"""

import subprocess
from collections.abc import Callable
from pathlib import Path


class PrecompiledHeader:
    """Made in the background from the moment of construction; `flags` waits for it.

    command: the compiler with every flag of the files that are to use it. folder: kept from build
    to build. notice: told in plain words when there will be none.
    """

    def __init__(
        self, command: list[str], header: Path, folder: Path, notice: Callable[[str], None]
    ):
        self.command, self.notice = command, notice
        self.source, self.made = folder / "torch.h", folder / "torch.h.gch"
        self.stamp = folder / "made-with.txt"
        version = subprocess.run([command[0], "--version"], capture_output=True, text=True)
        is_clang = "clang" in version.stdout
        self.options = ["-fpch-instantiate-templates"] if is_clang else []
        wanted = "\n".join([version.stdout, *command, header.read_text()])
        folder.mkdir(parents=True, exist_ok=True)
        self.maker = None
        if self.made.exists() and self.stamp.exists() and self.stamp.read_text() == wanted:
            return
        self.stamp.unlink(missing_ok=True)
        self.source.write_text(f'#include "{header}"\n')
        self.wanted = wanted
        self.maker = subprocess.Popen(
            [*command, *self.options, "-x", "c++-header", self.source, "-o", self.made],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def flags(self) -> list[str]:
        """What a file needs to use it; [] after a notice if it could not be made or read."""
        flags = ["-include", str(self.source), "-Winvalid-pch"]
        if self.maker is None:
            return flags
        said, _ = self.maker.communicate()
        if self.maker.returncode == 0:
            trial = self.source.with_name("trial.cpp")
            trial.write_text("")
            done = subprocess.run(
                [*self.command, *flags, "-fsyntax-only", trial], capture_output=True, text=True
            )
            said = done.stderr
            if done.returncode == 0 and "invalid-pch" not in said:
                self.stamp.write_text(self.wanted)
                return flags
        self.made.unlink(missing_ok=True)
        last = "\n".join(said.strip().splitlines()[-5:])
        self.notice(
            "NOTICE: this compiler makes no precompiled header of torch's that it can use, so each "
            f"file reads all of them, which takes some minutes more. It said:\n{last}"
        )
        return []
