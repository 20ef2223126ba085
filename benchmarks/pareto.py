"""Draws docs/pareto.svg from quality.csv: Dice against photos/s, of the rows that have both.

python benchmarks/pareto.py
"""

from pathlib import Path
from typing import Any

import matplotlib
import pandas as pd
from matplotlib.figure import Figure

_HERE = Path(__file__).parent
_FOLDS = {"0": "fold 0", "0 1 2": "three folds"}
_MARKERS = {"openvino": "o", "openvino-int8": "^", "pytorch": "s"}
_NAMES = {"openvino": "bfloat16", "openvino-int8": "8 bits", "pytorch": "PyTorch, bfloat16"}


def main() -> None:
    """Draws the picture."""
    rows = pd.read_csv(_HERE / "quality.csv", dtype={"folds": str})
    rows = rows.dropna(subset=["dice", "photos_per_second"])
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
            text = f"{row.recipe}, {_FOLDS[str(row.folds)]}"
            axes.annotate(
                *(text, (row.photos_per_second, row.dice)),
                xytext=(6, 4),
                textcoords="offset points",
                fontsize=8,
            )
        axes.set_xscale("log")
        axes.set_xlim(rows["photos_per_second"].min() / 1.5, rows["photos_per_second"].max() * 2.5)
        axes.margins(y=0.15)
        axes.xaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("photos/s, JPEG folder to PNG folder, 1918x1280, two processor cores")
        axes.set_ylabel("Dice of cars that the network has not seen")
        axes.grid(alpha=0.3)
        axes.legend(loc="lower left", frameon=False)
        figure.savefig(_HERE.parent / "docs" / "pareto.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
