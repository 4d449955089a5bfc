"""What the benchmarks write: the tables and the picture of README and docs, the plots."""

import os
import sys
import xml.etree.ElementTree as ElementTree

import pytest
from made_up_figures import CEILINGS, MACHINE, fake_result

from benchmarks import __main__ as command
from benchmarks import front, held, machine, peers, plots, readme, records
from benchmarks.harness import OWN, Competitor, Timing, Unavailable


def write(path, ours=2e-3, **about):
    """A CSV with rows of four suites; in the loop a TrainStep takes 3 ms, ours `ours`."""
    loop = fake_result(times={"torch fused Adam": 4e-3, "mlp_ext": ours, "fast": 1e-3})
    loop.case.competitors["TrainStep"] = Competitor(lambda: None, OWN)
    loop.timings["TrainStep"] = Timing([3e-3] * 3)
    loop.notes["late"] = "skipped: not here"
    loop.case.competitors["late"] = Competitor(lambda: None)
    gemm = {"torch": 2e-3, "mlp_ext": 3e-3}
    made = [loop, fake_result("epoch", "toy", {"torch": 3e-3, "mlp_ext": 1e-3})]
    made += [fake_result("gemm", "M=8 N=8 K=8", gemm, ceiling="fma_1")]
    made += [fake_result("linear", f"forward M={m} N=8 K=8", gemm) for m in (1, 16)]
    rows = [record for result in made for record in records.records_of(result, CEILINGS)]
    records.write_csv(path, rows, MACHINE | about, CEILINGS)
    return path


@pytest.fixture
def figures(tmp_path):
    return write(tmp_path / "figures-full.csv", isa="avx512_bf16")


@pytest.fixture
def avx2(tmp_path):
    return write(tmp_path / "figures-avx2-full.csv", isa="avx2", held="avx2")


def page_of(*names):
    return "".join(f"{'|'.join(readme.markers(name))}\nafter {name}\n" for name in names)


@pytest.fixture
def root(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text("before\n" + page_of("summary"))
    (tmp_path / "docs" / "benchmarks.md").write_text(page_of("loop", "epoch", "plots"))
    return tmp_path


def rewrite(root, *paths):
    return readme.main([*map(str, paths), "--root", str(root), "--no-plots"])


def test_blocks_are_rewritten_and_nothing_else(figures, root):
    for _ in range(2):
        assert rewrite(root, figures) == 0
        front_page = (root / "README.md").read_text()
        begin, end = readme.markers("summary")
        assert front_page.startswith(f"before\n{begin}\n|")
        assert front_page.endswith(f"\n{end}\nafter summary\n")
        text = (root / "docs" / "benchmarks.md").read_text()
        assert text.endswith(f"\n{readme.markers('plots')[1]}\nafter plots\n")
        assert text.count("small (2-2, 4) |") == 1 and text.count("| toy |") == 1
    for words in ("A CPU", "abc1234", "2026-01-02", "2 threads", "mlp_ext 0.50x of fast"):
        assert words in text
    assert "late skipped: not here" in text and "| 2.00x |" in text and "| 3.00x |" in text
    assert "TrainStep 0.33x of fast" in text and "**1000**" in text
    lost = "fast is faster in small (0.33x at worst)"  # TrainStep's; the loop's is 0.50x
    assert lost in front_page, "the front page names what it loses too"
    assert "| AVX2 | not measured yet |" in front_page


def test_a_table_for_each_kind_of_machine(figures, avx2, root):
    assert rewrite(root, avx2, figures) == 0
    text = (root / "docs" / "benchmarks.md").read_text()
    assert text.index("**AVX-512.**") < text.index("**AVX2.**")
    assert "A CPU, AVX-512 host held to AVX2, avx2, 2 threads" in text
    assert "not measured" not in text.lower() + (root / "README.md").read_text()
    picture = (root / readme.PICTURE.format("dark")).read_text()
    assert "AVX-512 host held to AVX2" in picture


def test_of_one_kind_the_newest_counts(figures, tmp_path):
    newer = write(tmp_path / "a-full.csv", isa="avx512", date="2026-02-01")
    assert [result.path for result in readme.read([newer, figures])] == [newer]


@pytest.mark.parametrize("theme", front.THEMES)
def test_the_picture_is_small_and_well_formed(figures, avx2, theme):
    panels = [front.Panel(r.members("loop"), r.about) for r in readme.read([figures, avx2])]
    picture = front.svg(panels, theme)
    assert len(picture) < 20_000
    root = ElementTree.fromstring(picture)
    words = [text.text for text in root.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("2.00x") == 2 and words.count("1.33x") == 2 and "2-2" in words
    for bar in root.iter("{http://www.w3.org/2000/svg}rect"):
        assert float(bar.get("width")) > 0 and float(bar.get("x")) >= 0


def test_what_is_committed_is_of_the_committed_results():
    """`python -m benchmarks.readme` would change nothing."""
    results = readme.read(sorted(readme.RESULTS.glob("*-full.csv")))
    for path, text in readme.written(results, readme.newest_demo()).items():
        assert path.read_text() == text, f"{path.name}: run python -m benchmarks.readme"
    for result in results:
        for name in result.plots():
            assert (readme.RESULTS / f"{result.prefix}-{name}.png").stat().st_size < 150_000


@pytest.mark.parametrize(
    "text",
    [
        "".join(reversed(readme.markers("loop"))),
        readme.markers("loop")[0] * 2,
        page_of("loop", "loop"),
        page_of("no_such_block"),
    ],
)
def test_a_page_with_bad_markers_stays(figures, root, text, capsys):
    path = root / "docs" / "benchmarks.md"
    path.write_text(text)
    assert rewrite(root, figures) == 1
    assert path.read_text() == text and "benchmarks:" in capsys.readouterr().err
    assert (root / "README.md").read_text() == "before\n" + page_of("summary")


def test_plots_are_drawn(figures, tmp_path):
    assert plots.main([str(figures), str(tmp_path / "plots")]) == 0
    drawn = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert drawn == ["crossover.png", "loop.png", "roofline.png"]


# ---- a run that is held to an older instruction set


def test_held_runs_start_again_with_every_library_held(monkeypatch):
    monkeypatch.setattr(held.mlp_ext.cpu, "supported_isas", lambda: ["scalar", "avx2", "avx512"])
    started = []

    def execve(program, arguments, environment):
        started.append((program, arguments, environment))
        raise SystemExit("started")

    monkeypatch.setattr(os, "execve", execve)
    with pytest.raises(SystemExit, match="started"):
        command.main(["loop", "--isa", "avx2"])
    program, arguments, environment = started[0]
    assert program == sys.executable
    assert arguments[1:] == ["-m", "benchmarks", "loop", "--isa", "avx2"]
    for name, value in {
        "MLP_EXT_CPU_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
    }.items():
        assert environment[name] == value


def test_jax_is_left_out_of_held_runs(monkeypatch):
    monkeypatch.setenv(held.MARK, "avx2")
    with pytest.raises(Unavailable, match="jax is not installed|JAX cannot be held to avx2"):
        peers.jax_adam("seed")


def test_a_run_that_is_not_held_is_refused(monkeypatch):
    monkeypatch.setattr(held.mlp_ext.cpu, "supported_isas", lambda: ["scalar"])
    with pytest.raises(SystemExit, match="run scalar"):
        command.main(["loop", "--isa", "avx2"])
    monkeypatch.setenv(held.MARK, "avx2")
    monkeypatch.setattr(held.mlp_ext.cpu, "active_isa", lambda: "scalar")
    with pytest.raises(SystemExit, match="not held to avx2: mlp_ext runs scalar"):
        command.main(["loop", "--isa", "avx2"])


def test_the_machine_says_what_it_is_held_to(monkeypatch):
    assert machine.describe()["held"] == ""
    monkeypatch.setenv(held.MARK, "avx2")
    monkeypatch.setattr(machine.mlp_ext.cpu, "supported_isas", lambda: ["avx2", "avx512"])
    about = machine.describe()
    assert about["held"] == "avx2" and held.march() == "haswell"
    assert machine.host(about).endswith(", AVX-512 host held to AVX2")
    monkeypatch.setattr(machine.mlp_ext.cpu, "supported_isas", lambda: ["avx2"])
    assert machine.describe()["held"] == "", "a CPU that has no more is not held"
