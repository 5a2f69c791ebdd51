"""A reliability diagram: how often what is given a probability is the case."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from client.evaluation.click_metrics import ReliabilityBin
from shared.base.atomic_files import whole_file
from shared.base.errors import InputError

FORMATS = (".svg", ".png")


def require_plots(path: Path) -> None:
    """Check that a plot can be drawn there, before anything is computed.

    Raises:
        InputError: the ending is of no kind of image, or matplotlib is not installed.
    """
    if path.suffix.lower() not in FORMATS:
        raise InputError(
            f"--plot ends in {path.suffix!r}", where=str(path), do=f"name a file that ends in {' or '.join(FORMATS)}"
        )
    try:
        import matplotlib  # type: ignore[import-not-found,unused-ignore] # noqa: F401
    except ImportError:
        raise InputError(
            "matplotlib, which draws plots, is not installed", where="--plot", do="pip install 'fedfuse[plots]'"
        ) from None


def plot_reliability(path: Path, models: Mapping[str, Sequence[ReliabilityBin]], *, title: str) -> None:
    """Draw the models' bins with their intervals on logarithmic axes; what is calibrated lies on the diagonal.

    Args:
        path: A .svg or .png file, of mode 0600; replaced if it is there.
        models: Model -> its bins.

    Raises:
        InputError: as `require_plots`.
        StorageError: the file cannot be written.
    """
    require_plots(path)
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    # Texts stay texts, and equal figures give equal files.
    with rc_context({"svg.hashsalt": "fedfuse", "svg.fonttype": "none"}):
        figure = Figure(figsize=(6.0, 6.0), layout="constrained")
        axes = figure.subplots()
        shown = [value for bins in models.values() for one in bins for value in (one.predicted, one.observed) if value > 0]
        ends = (min(shown, default=1e-6) / 2, min(1.0, max(shown, default=1.0) * 2))
        axes.plot(ends, ends, color="0.6", linestyle="--", linewidth=1, label="calibrated")
        for name, bins in models.items():
            seen = [one for one in bins if one.observed > 0]
            around = [
                [one.observed - max(one.low, ends[0]) for one in seen],
                [one.high - one.observed for one in seen],
            ]
            line = axes.errorbar(
                [one.predicted for one in seen], [one.observed for one in seen], yerr=around, marker="o", markersize=4,
                linewidth=1.2, capsize=2, label=name,
            )  # fmt: skip
            # On a logarithmic axis nothing is at 0: of bins in which nothing was liked the interval alone is shown.
            never = [one for one in bins if not one.observed]
            axes.vlines(
                [one.predicted for one in never], ends[0], [one.high for one in never], color=line[0].get_color(), linewidth=0.8,
                linestyle=":",
            )  # fmt: skip
        axes.set(
            xscale="log",
            yscale="log",
            ylim=(ends[0], 1.0),
            xlabel="predicted probability that an item is liked next",
            ylabel="share that was (95 %)",
            title=title,
        )
        axes.grid(visible=True, which="major", linewidth=0.4, alpha=0.5)
        axes.legend()
        canvas = FigureCanvasSVG(figure) if path.suffix.lower() == ".svg" else FigureCanvasAgg(figure)
        metadata = {"Date": None} if path.suffix.lower() == ".svg" else {}
        with whole_file(path, mode=0o600) as draft:
            canvas.print_figure(str(draft), format=path.suffix.lower()[1:], dpi=150, metadata=metadata)
