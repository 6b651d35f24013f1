"""Bar charts of performance.md, as SVG."""

import matplotlib

matplotlib.use("Agg")
# The same figures give the same file.
matplotlib.rcParams["svg.hashsalt"] = "strata"
from matplotlib import pyplot  # noqa: E402


def bars(axes, results, of, columns, names):
    """One cluster of bars for each name; tests without a figure have a gap."""
    width = 0.8 / len(columns)
    for number, column in enumerate(columns):
        points = [(place + (number - (len(columns) - 1) / 2) * width, of(column, name))
                  for place, name in enumerate(names)]
        points = [(x, y) for x, y in points if y]
        axes.bar([x for x, _ in points], [y for _, y in points], width, label=column)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_yscale("log")
    axes.axhline(1, color="black", linewidth=0.8)
    axes.grid(axis="y", which="both", linewidth=0.3)
    axes.set_axisbelow(True)
    axes.legend(fontsize=7, ncol=4)


def mark_wanted(axes, results, wanted, names):
    for place, name in enumerate(names):
        if results.tests[name] in wanted:
            y = wanted[results.tests[name]]
            axes.plot([place - 0.45, place + 0.45], [y, y], color="black", linestyle=":")


def draw(results, folder, wanted):
    """Draws the charts; returns their titles and file names."""
    names, drawn = list(results.tests), []
    for title, file, of, columns, marks in [
            ("times faster than QEMU TCG (dotted: wanted)", "performance-tcg.svg", results.gain,
             results.strata, wanted),
            ("times slower than native", "performance-native.svg", results.slowdown,
             ["qemu-tcg", *results.strata], {})]:
        chart, axes = pyplot.subplots(figsize=(12, 4.5))
        bars(axes, results, of, columns, names)
        mark_wanted(axes, results, marks, names)
        axes.set_ylabel(title, fontsize=8)
        chart.tight_layout()
        chart.savefig(folder / file, metadata={"Date": None})
        pyplot.close(chart)
        drawn.append((title, file))
    return drawn
