"""The headers of torch and pybind11, read once a build and not once a file.

csrc/bindings/precompiled.h lists them. A compiler that is told `-include torch.h` takes torch.h.gch
beside it, if that was made with the same flags: so do GCC and clang. The sources include what they
use, as if there were none of this; without it they compile as well, and take three times as long.
"""

import re
import subprocess
from collections.abc import Callable
from pathlib import Path


class PrecompiledHeader:
    """Made in the background from the moment of construction; `flags` waits for it. As a context
    manager it stops the compiler that still runs when the build has failed.

    command: the compiler with every flag of the files that are to use it. folder: kept from build
    to build. notice: told in plain words when there will be none. is_new: whether it is made now,
    so that what was compiled with an older one has to be compiled again.
    """

    def __init__(
        self, command: list[str], header: Path, folder: Path, notice: Callable[[str], None]
    ):
        self.command, self.notice = command, notice
        self.source, self.made = folder / "torch.h", folder / "torch.h.gch"
        self.stamp, self.partial = folder / "made-with.txt", folder / "torch.h.partial"
        self.dependencies = folder / "torch.h.d"
        version = subprocess.run([command[0], "--version"], capture_output=True, text=True)
        is_clang = "clang" in version.stdout
        self.options = ["-fpch-instantiate-templates"] if is_clang else []
        self.wanted = "\n".join([version.stdout, *command, header.read_text()])
        folder.mkdir(parents=True, exist_ok=True)
        self.is_new = not (self.made.exists() and self._stamp_holds())
        self.maker = None
        if self.is_new:
            self.stamp.unlink(missing_ok=True)
            self.source.write_text(f'#include "{header}"\n')
            self.maker = subprocess.Popen(
                [
                    *(*command, *self.options, "-x", "c++-header", self.source),
                    *("-o", self.partial, "-MD", "-MF", self.dependencies),
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.maker is not None and self.maker.poll() is None:
            self.maker.kill()
            self.maker.communicate()
        self.partial.unlink(missing_ok=True)

    def _files(self) -> str:
        """Size and time of every file that went into it: where another torch of the same version
        takes this one's place, GCC would go on with the old one, and clang refuse every file."""
        names = re.sub(r"\\\n", " ", self.dependencies.read_text()).split(":", 1)[1]
        lines = []
        for name in re.findall(r"(?:\\ |\S)+", names):
            status = Path(name.replace("\\ ", " ")).stat()
            lines.append(f"{status.st_size} {status.st_mtime_ns} {name}")
        return "\n".join(lines)

    def _stamp_holds(self) -> bool:
        try:
            return self.stamp.read_text() == self.wanted + "\n" + self._files()
        except (OSError, IndexError):
            return False

    def flags(self) -> list[str]:
        """What a file needs to use it; [] after a notice if it could not be made or read."""
        flags = ["-include", str(self.source), "-Winvalid-pch"]
        if self.maker is None:
            return flags
        said, _ = self.maker.communicate()
        if self.maker.returncode == 0:
            self.partial.replace(self.made)
            trial = self.source.with_name("trial.cpp")
            trial.write_text("")
            done = subprocess.run(
                [*self.command, *flags, "-fsyntax-only", trial], capture_output=True, text=True
            )
            said = done.stderr
            if done.returncode == 0 and "invalid-pch" not in said:
                self.stamp.write_text(self.wanted + "\n" + self._files())
                return flags
        self.made.unlink(missing_ok=True)
        last = "\n".join(said.strip().splitlines()[-5:])
        self.notice(
            "NOTICE: this compiler makes no precompiled header of torch's that it can use, so each "
            f"file reads all of them, which takes some minutes more. It said:\n{last}"
        )
        return []
