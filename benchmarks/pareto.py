"""Draws docs/pareto.svg from quality.csv: Dice against photos/s, of the rows of fold 0 with both.

python benchmarks/pareto.py
"""

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

_HERE = Path(__file__).parent
_MARKERS = {"openvino": "o", "openvino-int8": "^", "pytorch": "s"}
_NAMES = {"openvino": "bfloat16", "openvino-int8": "8 bits", "pytorch": "PyTorch, bfloat16"}


def main() -> None:
    """Draws the picture."""
    rows = pd.read_csv(_HERE / "quality.csv", dtype={"folds": str})
    rows = rows[rows["folds"] == "0"].dropna(subset=["dice", "photos_per_second"])
    settings: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "pareto", "font.size": 9}
    with matplotlib.rc_context(settings):
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes = figure.subplots()
        for engine, of_engine in rows.groupby("engine"):
            label = _NAMES[str(engine)]
            axes.plot(
                *(of_engine["photos_per_second"], of_engine["dice"], _MARKERS[str(engine)]),
                label=label,
            )
        for row in rows.itertuples():
            ours = row.engine != "pytorch"
            axes.annotate(
                Path(str(row.recipe)).name if ours else str(row.network),
                (row.photos_per_second, row.dice),
                xytext=(6, 4),
                textcoords="offset points",
            )
        axes.set_xscale("log")
        axes.set_xlim(rows["photos_per_second"].min() / 1.5, rows["photos_per_second"].max() * 1.8)
        axes.margins(y=0.15)
        axes.set_xticks([5, 10, 20, 40])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("photos/s, JPEG folder to PNG folder, 1918x1280, two processor cores")
        axes.set_ylabel("Dice of 8 cars that the network has not seen (fold 0)")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", frameon=False)
        figure.savefig(_HERE.parent / "docs" / "pareto.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
