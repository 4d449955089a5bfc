"""What setup.py compiles with: the precompiled header, and the lines of progress."""

import io
import os
import shutil
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "csrc" / "build_tools"))
import progress
from precompiled_header import PrecompiledHeader

needs_gcc = pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")


@pytest.fixture
def header(tmp_path):
    path = tmp_path / "precompiled.h"
    path.write_text("#include <vector>\n")
    return path


def made(command, header, said):
    return PrecompiledHeader(command, header, header.parent / "kept", said.append)


@needs_gcc
def test_a_header_is_made_once_and_again_for_other_flags(header):
    said = []
    first = made(["g++", "-O1"], header, said)
    assert first.is_new
    flags = first.flags()
    assert flags[0] == "-include" and Path(flags[1] + ".gch").exists() and not said
    assert not made(["g++", "-O1"], header, said).is_new
    made(["g++", "-O2"], header, said).flags()
    os.utime(header)  # another file of the same text: clang would refuse the old one
    again = made(["g++", "-O2"], header, said)
    assert again.is_new
    again.flags()
    header.write_text("#include <string>\n")
    assert made(["g++", "-O2"], header, said).is_new


@needs_gcc
def test_a_failed_build_leaves_no_compiler_behind(header):
    header.write_text("#include <regex>\n#include <filesystem>\n")
    with pytest.raises(KeyboardInterrupt), made(["g++", "-O2"], header, []) as unfinished:
        raise KeyboardInterrupt
    assert unfinished.maker.poll() is not None
    assert not unfinished.partial.exists() and not unfinished.made.exists()


@needs_gcc
def test_a_header_that_does_not_compile_is_left_out_aloud(header):
    header.write_text("#include <no/such/header>\n")
    said = []
    assert made(["g++"], header, said).flags() == []
    assert len(said) == 1 and "NOTICE" in said[0] and "no/such/header" in said[0]
    assert made(["g++"], header, []).is_new  # and tried again


def test_a_compiler_that_makes_what_it_cannot_read(header, tmp_path):
    """As one does that has to have the file at an address which is taken."""
    compiler = tmp_path / "cc"
    compiler.write_text(
        '#!/bin/sh\ncase "$*" in *--version*) echo cc 1;; '
        '*-fsyntax-only*) echo "cannot relocate" >&2; exit 1;; *) touch "${5}";; esac\n'
    )
    compiler.chmod(0o755)
    said = []
    assert made([str(compiler)], header, said).flags() == []
    assert "cannot relocate" in said[0]


def test_progress_counts_what_is_new(tmp_path, monkeypatch):
    output = io.StringIO()
    monkeypatch.setattr(progress, "open_output", lambda: output)
    monkeypatch.setattr(progress, "SECONDS", 0.01)
    objects = [tmp_path / f"{i}.o" for i in range(3)]
    with progress.Progress().watch(objects):
        objects[1].touch()
    for path in objects:
        path.touch()
        os.utime(path, (1, 1))  # of an earlier build
    with progress.Progress().watch(map(str, objects)):
        objects[1].touch()
        objects[2].touch()
    lines = [line.rpartition(",")[0] for line in output.getvalue().split("\n") if line]
    assert lines[0] == "mlp_ext: compiled 1 of 3 files"
    assert lines[-1] == "mlp_ext: compiled 2 files"
