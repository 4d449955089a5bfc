"""How the MNIST demo shows what it measured: progress bar, table, figure, JSON.

A competitor, here, is whatever has the fields `name`, `short`, `ours`, `seconds` and `losses` (one
value an epoch) and `accuracy`; those that are not `ours` are what the others are compared with.
"""

import json
import platform
import statistics
from pathlib import Path

import matplotlib
import torch
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import mlp_ext

matplotlib.use("Agg")  # draws into files; needs no display
import matplotlib.pyplot as plt  # noqa: E402

# Of the palette of Okabe and Ito, told apart with any colour vision.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
MARKERS = ("o", "s", "D", "^", "v")


def machine() -> dict[str, str | int]:
    """The machine and the versions that the figures belong to."""
    return {
        "cpu": cpu_model(),
        "threads": torch.get_num_threads(),
        "isa": mlp_ext.cpu.active_isa(),
        "torch": torch.__version__,
        "mlp_ext": mlp_ext.__version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def cpu_model() -> str:
    """The name in /proc/cpuinfo, which has none on most aarch64 machines."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def progress_bar() -> Progress:
    """A bar that draws only when told to: a thread that redraws would run into the timings."""
    return Progress(
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("epochs"),
        TimeElapsedColumn(),
        TextColumn("{task.description}"),
        auto_refresh=False,
    )


def median_seconds(competitor) -> float:
    return statistics.median(competitor.seconds)


def print_table(competitors, settings: dict) -> None:
    baselines = [competitor for competitor in competitors if not competitor.ours]
    table = Table(
        box=box.HORIZONTALS,
        collapse_padding=True,
        pad_edge=False,
        title=f"MNIST, 784-512-256-10, batch {settings['batch_size']}, {settings['epochs']} epochs",
        caption=(
            "Seconds: median over the epochs of the whole loop (DataLoader, forward, backward,"
            f" step; the DataLoader alone takes {settings['dataloader_seconds']:.3f})."
            f" Accuracy: on {settings['test_digits']} held-out digits."
            f" Loss: mean over the last epoch's batches ({settings['train_digits']} digits)."
        ),
    )
    table.add_column("")
    table.add_column("seconds\nan epoch", justify="right")
    for baseline in baselines:
        table.add_column(f"speed-up\nover\n{baseline.short}", justify="right")
    table.add_column("test\naccuracy", justify="right")
    table.add_column("final\nloss", justify="right")
    for competitor in competitors:
        seconds = median_seconds(competitor)
        table.add_row(
            competitor.name,
            f"{seconds:.3f}",
            *(f"{median_seconds(baseline) / seconds:.2f}x" for baseline in baselines),
            f"{competitor.accuracy:.1%}",
            f"{competitor.losses[-1]:.5f}",
            style="bold" if competitor.ours else "",
        )
    console = Console()
    console.print(table)
    console.print(describe(machine()), highlight=False)


def describe(machine: dict) -> str:
    threads = machine["threads"]
    return (
        f"{machine['cpu']}, {threads} thread{'s' * (threads != 1)}; torch {machine['torch']};"
        f" mlp_ext {machine['mlp_ext']}, {machine['isa']} kernels"
    )


def save_figure(path: Path, competitors, settings: dict) -> None:
    """Loss against training time, a marker an epoch, beside the bars of seconds an epoch."""
    figure, (curves, bars) = plt.subplots(
        1, 2, figsize=(11, 4.4), width_ratios=(3, 2), layout="constrained"
    )
    figure.suptitle(
        f"MNIST digits, 784-512-256-10, Adam, batch {settings['batch_size']}", fontweight="bold"
    )

    for competitor, colour, marker in zip(competitors, COLOURS, MARKERS, strict=True):
        # At the median pace: a hiccup of the machine is no property of whoever ran just then.
        elapsed = median_seconds(competitor) * torch.arange(1, len(competitor.losses) + 1)
        curves.plot(
            elapsed, competitor.losses, marker=marker, markersize=4, color=colour,
            label=f"{competitor.name}, test accuracy {competitor.accuracy:.1%}",
        )  # fmt: skip
    curves.set(
        title="Training loss",
        xlabel="training time (s): epochs times median seconds",
        ylabel="cross-entropy (mean of the epoch)",
        yscale="log",
    )
    curves.legend(frameon=False, fontsize=9)

    # Lying bars: each name has a line of its own, however many there are and however long.
    names = [competitor.name.replace(", ", ",\n") for competitor in competitors]
    drawn = bars.barh(names, [median_seconds(c) for c in competitors], color=COLOURS, height=0.6)
    slowest = max(median_seconds(c) for c in competitors)
    bars.bar_label(drawn, fmt="%.3f s", padding=3)
    bars.set(title="Seconds an epoch (median)", xlim=(0, 1.25 * slowest))
    bars.invert_yaxis()  # the first on top
    bars.set_xticks([])
    bars.tick_params(axis="y", length=0)
    bars.spines["bottom"].set_visible(False)

    figure.get_layout_engine().set(w_pad=0.15)
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(describe(machine()), fontsize=8, color="#555555")

    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
    print(f"Figure: {path}")


def save_json(path: Path, competitors, settings: dict) -> None:
    """The figures with the machine they were measured on; `seconds` and `losses` epoch by epoch."""
    baselines = [competitor for competitor in competitors if not competitor.ours]
    report = {
        "machine": machine(),
        "settings": settings,
        "competitors": [
            {
                "name": competitor.name,
                "median_seconds": median_seconds(competitor),
                "seconds": competitor.seconds,
                "losses": competitor.losses,
                "test_accuracy": competitor.accuracy,
            }
            for competitor in competitors
        ],
        "speed_up_over": {
            baseline.name: {
                competitor.name: median_seconds(baseline) / median_seconds(competitor)
                for competitor in competitors
                if competitor.ours
            }
            for baseline in baselines
        },
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(report, indent=2) + "\n")
    print(f"Figures: {path}")
