"""What the benchmarks write: the README's tables, the plots."""

import pytest
from made_up_figures import CEILINGS, MACHINE, fake_result

from benchmarks import plots, readme, records


@pytest.fixture
def figures(tmp_path):
    """A CSV with rows of four suites."""
    path = tmp_path / "figures.csv"
    gemm = {"torch": 2e-3, "mlp_ext": 3e-3}
    made = [fake_result(notes={"late": "skipped: not here"})]
    made += [fake_result("epoch", "toy", {"torch": 3e-3, "mlp_ext": 1e-3})]
    made += [fake_result("gemm", "M=8 N=8 K=8", gemm, ceiling="fma_1")]
    made += [fake_result("linear", f"forward M={m} N=8 K=8", gemm) for m in (1, 16)]
    rows = [record for result in made for record in records.records_of(result, CEILINGS)]
    records.write_csv(path, rows, MACHINE, CEILINGS)
    return path


def readme_of(suites):
    return "".join(f"{'|'.join(readme.markers(suite))}\nafter {suite}\n" for suite in suites)


def test_readme_tables_are_rewritten_and_nothing_else(figures, tmp_path):
    path = tmp_path / "README.md"
    path.write_text("before\n" + readme_of(readme.SUITES))
    for _ in range(2):
        assert readme.main([str(figures), "--readme", str(path)]) == 0
        text = path.read_text()
        begin, end = readme.markers("loop")
        assert text.startswith(f"before\n{begin}\n") and f"\n{end}\nafter loop\n" in text
        assert text.endswith(f"\n{readme.markers('epoch')[1]}\nafter epoch\n")
        assert text.count("small (2-2, 4) |") == 1 and text.count("| toy |") == 1
    for words in ("A CPU", "abc1234", "2026-01-02", "2 threads", "0.50x of fast", "**1000**"):
        assert words in text
    assert "late skipped: not here" in text and "| 2.00x |" in text and "| 3.00x |" in text


@pytest.mark.parametrize(
    "text",
    [
        "none",
        "".join(reversed(readme.markers("loop"))),
        readme.markers("loop")[0] * 2,
        readme_of(["loop"]),
    ],
)
def test_readme_without_the_markers_stays(figures, tmp_path, text, capsys):
    path = tmp_path / "README.md"
    path.write_text(text)
    assert readme.main([str(figures), "--readme", str(path)]) == 1
    assert path.read_text() == text and "benchmarks:" in capsys.readouterr().err


def test_plots_are_drawn(figures, tmp_path):
    assert plots.main([str(figures), str(tmp_path / "plots")]) == 0
    drawn = sorted(path.name for path in (tmp_path / "plots").iterdir())
    assert drawn == ["crossover.png", "loop.png", "roofline.png"]
