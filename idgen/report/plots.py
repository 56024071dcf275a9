"""Plots for reports: readable at the width of a telephone, in colours that colour-blind people tell apart.

Shapes: K bins, T points of a curve.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from idgen.report.document import Figure, Measure

# Okabe and Ito 2008, without yellow, which is too pale on white.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
DASHES = ("-", "--", "-.", ":")  # so that curves differ in print as well
SIZE_INCHES, DPI = (6.4, 3.8), 150
STYLE: dict[Any, Any] = {
    "font.size": 10.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e8eb",
    "grid.linewidth": 0.8,
    "axes.axisbelow": True,
    "figure.facecolor": "white",
}


class _Canvas:
    """A figure that is being drawn."""

    def __init__(self, figure: Any, axes: Any) -> None:  # noqa: ANN401 - matplotlib is imported when it draws
        self._figure, self.axes = figure, axes

    def finish(self, title: str, x_label: str, y_label: str, *, alt: str, note: str = "") -> Figure:
        """The PNG, without a date: equal data give equal bytes."""
        self.axes.set_xlabel(x_label)
        self.axes.set_ylabel(y_label)
        handles, _ = self.axes.get_legend_handles_labels()
        if handles:
            self.axes.legend(fontsize=9, frameon=True, facecolor="white", edgecolor="none", framealpha=0.85)
        stream = io.BytesIO()
        self._figure.savefig(stream, format="png", dpi=DPI, metadata={"Software": None})
        return Figure(title=title, png=stream.getvalue(), alt=alt, note=note)


@contextmanager
def _canvas() -> Iterator[_Canvas]:
    """A figure and its axes, drawn without a window."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure as MatplotlibFigure

    with matplotlib.rc_context(STYLE):
        figure = MatplotlibFigure(figsize=SIZE_INCHES, layout="constrained")
        FigureCanvasAgg(figure)
        yield _Canvas(figure, figure.subplots())


def _grouped(histogram: np.ndarray, most: int = 200) -> np.ndarray:
    """Neighbouring bins joined until at most ``most`` are left."""
    join = -(-len(histogram) // most)
    padded = np.pad(histogram, (0, -len(histogram) % join))
    return padded.reshape(-1, join).sum(axis=1)


def distribution_figure(
    title: str,
    genuine: np.ndarray,
    impostor: np.ndarray,
    *,
    thresholds: Mapping[str, float] | None = None,
    note: str = "",
) -> Figure:
    """Two score distributions over one axis, with threshold lines.

    Args:
        title: what is seen.
        genuine: (K,) histogram over cosines in [-1, 1].
        impostor: (K,) likewise.
        thresholds: name -> cosine.
        note: small print.
    """
    with _canvas() as canvas:
        axes = canvas.axes
        shown = np.zeros(0)
        kinds = (("two people", impostor, COLOURS[1]), ("one person", genuine, COLOURS[0]))
        for name, histogram, colour in kinds:
            grouped = _grouped(histogram)
            centres = np.linspace(-1, 1, len(grouped) + 1)[:-1] + 1 / len(grouped)
            if grouped.sum():
                density = grouped / grouped.sum() * len(grouped) / 2
                axes.fill_between(centres, density, step="mid", color=colour, alpha=0.35, linewidth=0)
                axes.plot(centres, density, color=colour, drawstyle="steps-mid", label=name, linewidth=1.3)
                shown = np.concatenate([shown, centres[density > 0.002 * density.max()]])
        for (name, cosine), dashes in zip((thresholds or {}).items(), DASHES[1:] * 9, strict=False):
            if np.isfinite(cosine):
                label = f"{name}: {cosine:.3f}"
                axes.axvline(cosine, color="#333333", linestyle=dashes, linewidth=1, label=label)
        if len(shown):
            axes.set_xlim(max(-1, shown.min() - 0.05), min(1, shown.max() + 0.05))
        axes.set_ylim(bottom=0)
        alt = f"{title}: share of pairs by cosine, for pictures of one person and of two people."
        return canvas.finish(title, "cosine similarity", "density", alt=alt, note=note)


def curve_figure(
    title: str,
    curves: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    *,
    log_x: bool = False,
    log_y: bool = False,
    markers: bool = False,
    note: str = "",
) -> Figure:
    """Curves by name: each (x (T,), y (T,)). Points that a logarithmic axis cannot show are left out."""
    with _canvas() as canvas:
        axes = canvas.axes
        num_points = 0
        for number, (name, (x, y)) in enumerate(curves.items()):
            keep = np.isfinite(x) & np.isfinite(y) & ((x > 0) | (not log_x)) & ((y > 0) | (not log_y))
            num_points += int(keep.sum())
            axes.plot(
                x[keep], y[keep], label=name, color=COLOURS[number % len(COLOURS)],
                linestyle=DASHES[number % len(DASHES)], linewidth=1.6, marker="o" if markers else None,
                markersize=4,
            )  # fmt: skip
        if num_points:  # an axis without anything on it cannot be logarithmic
            axes.set_xscale("log" if log_x else "linear")
            axes.set_yscale("log" if log_y else "linear")
        alt = f"{title}: {y_label} against {x_label} for {', '.join(curves)}."
        return canvas.finish(title, x_label, y_label, alt=alt, note=note)


def det_figure(title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, note: str = "") -> Figure:
    """Detection error trade-off: name -> (FMR (T,), FNMR (T,)), both axes logarithmic."""
    labels = ("false match rate (FMR)", "false non-match rate (FNMR)")
    return curve_figure(title, curves, *labels, log_x=True, log_y=True, note=note)


def roc_figure(title: str, curves: Mapping[str, tuple[np.ndarray, np.ndarray]], *, note: str = "") -> Figure:
    """Receiver operating characteristic: name -> (FAR (T,), TAR (T,)), FAR logarithmic."""
    labels = ("false acceptance rate (FAR)", "true acceptance rate (TAR)")
    return curve_figure(title, curves, *labels, log_x=True, note=note)


def cmc_figure(title: str, curves: Mapping[str, np.ndarray], *, note: str = "") -> Figure:
    """Cumulative match curve: name -> share found within rank 1, 2, ... (T,)."""
    ranked = {name: (np.arange(1, len(shares) + 1), shares) for name, shares in curves.items()}
    return curve_figure(title, ranked, "rank", "share of pictures found", note=note)


def bars_figure(title: str, groups: Mapping[str, Measure], y_label: str, *, note: str = "") -> Figure:
    """One bar a group, with its interval."""
    with _canvas() as canvas:
        axes = canvas.axes
        known = {name: measure for name, measure in groups.items() if np.isfinite(measure.value)}
        for place, measure in enumerate(known.values()):
            axes.bar(place, measure.value, width=0.62, color=COLOURS[0], alpha=0.8)
            if measure.interval:
                low, high = measure.interval
                axes.plot([place, place], [low, high], color="#222222", linewidth=1.6)
        axes.set_xticks(range(len(known)), [name.replace(" ", "\n", 1) for name in known], fontsize=9)
        axes.axhline(0, color="#333333", linewidth=0.8)
        alt = f"{title}: " + ", ".join(f"{name} {measure.value:.3f}" for name, measure in known.items()) + "."
        return canvas.finish(title, "", y_label, alt=alt, note=note)


def histogram_figure(
    title: str, values: Mapping[str, np.ndarray], x_label: str, *, num_bins: int = 40, note: str = ""
) -> Figure:
    """Histograms of several samples over one axis, as densities; NaN is left out."""
    with _canvas() as canvas:
        known = {name: sample[np.isfinite(sample)] for name, sample in values.items()}
        everything = np.concatenate([*known.values(), np.zeros(0)])
        edges = np.histogram_bin_edges(everything, bins=num_bins) if len(everything) else np.array([0.0, 1.0])
        for number, (name, sample) in enumerate(known.items()):
            if len(sample):
                canvas.axes.hist(
                    sample, bins=edges, density=True, histtype="stepfilled", alpha=0.35, label=name,
                    color=COLOURS[number % len(COLOURS)], edgecolor=COLOURS[number % len(COLOURS)],
                )  # fmt: skip
        alt = f"{title}: distribution of {x_label} for {', '.join(known)}."
        return canvas.finish(title, x_label, "density", alt=alt, note=note)


def scatter_figure(
    title: str,
    points: Mapping[str, tuple[np.ndarray, np.ndarray]],
    x_label: str,
    y_label: str,
    *,
    labels: Sequence[str] = (),
    note: str = "",
) -> Figure:
    """Points by group, joined in their order; ``labels`` name the points of every group."""
    with _canvas() as canvas:
        for number, (name, (x, y)) in enumerate(points.items()):
            colour = COLOURS[number % len(COLOURS)]
            canvas.axes.plot(x, y, color=colour, marker="o", linewidth=1.2, label=name)
            for at, text in zip(zip(x, y, strict=True), labels, strict=False):
                canvas.axes.annotate(text, at, textcoords="offset points", xytext=(6, 5), fontsize=9)
        alt = f"{title}: {y_label} against {x_label}."
        return canvas.finish(title, x_label, y_label, alt=alt, note=note)
