"""Plots of results, each written to one file."""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from egnn_jax._files import write_atomically

if TYPE_CHECKING:
    import networkx as nx


def subplots(size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """A new figure and its axes, like ``pyplot.subplots``; the size is in inches."""
    from matplotlib.figure import Figure  # here, since importing it takes a second

    figure = Figure(size)
    return figure, figure.subplots(rows, columns, **options)


def save(figure: Any, path: Path, dpi: int = 130, tight: bool = True) -> Path:
    """Write a figure to a file, cropped to its content if ``tight``."""
    content = io.BytesIO()
    box = "tight" if tight else None
    figure.savefig(content, format=path.suffix[1:], dpi=dpi, bbox_inches=box)
    write_atomically(path, content.getvalue())
    return path


def table(rows: Sequence[Mapping[str, str]], path: Path) -> Path:
    """Draw a table of text; the keys of the first row are its header."""
    figure, axes = subplots((1.6 * len(rows[0]), 0.4 * (len(rows) + 1)))
    axes.axis("off")
    cells = [list(row.values()) for row in rows]
    artist = axes.table(cells, colLabels=list(rows[0]), loc="center", cellLoc="center")
    artist.auto_set_column_width(list(range(len(rows[0]))))
    artist.scale(1, 1.4)
    return save(figure, path)


def curves(
    points: Mapping[str, Sequence[tuple[float, float]]],
    xlabel: str,
    ylabel: str,
    title: str,
    path: Path,
    log: bool = False,
) -> Path:
    """Draw one curve per name through its points, sorted by x; both axes are log if ``log``."""
    figure, axes = subplots((6, 4))
    for name, values in points.items():
        axes.plot(*zip(*sorted(values), strict=True), marker="o", label=name)
    scale = "log" if log else "linear"
    axes.set(xscale=scale, yscale=scale, xlabel=xlabel, ylabel=ylabel, title=title)
    axes.grid(alpha=0.3, which="both")
    # A legend of many names would hide curves.
    legend_position = (
        {"loc": "center left", "bbox_to_anchor": (1.0, 0.5)} if len(points) > 6 else {}
    )
    axes.legend(**legend_position)
    return save(figure, path)


def loss_curves(
    histories: Mapping[str, Sequence[Mapping[str, Any]]], metrics: Mapping[str, str], path: Path
) -> Path:
    """Draw training loss (thin) and validation metric over epochs, one color per run.

    Losses that are not all positive get an axis of their own. The axis of values that are all
    positive is log.
    """
    figure, axes = subplots((7, 4.5))
    losses, errors = {}, {}
    for name, history in histories.items():
        losses[name] = [float(np.mean(entry["train"]["loss"])) for entry in history]
        errors[name] = [float(np.mean(entry["valid"][metrics[name]])) for entry in history]
    metric_names = ", ".join(dict.fromkeys(metrics.values()))
    loss_axes, label = axes, f"{metric_names} (thin: training loss)"
    if _scale(losses) == "linear":
        loss_axes, label = axes.twinx(), metric_names
        loss_axes.set_ylabel("training loss (thin)")
    for k, (name, history) in enumerate(histories.items()):
        epochs = [entry["epoch"] for entry in history]
        loss_axes.plot(epochs, losses[name], color=f"C{k}", lw=0.8, alpha=0.5)
        axes.plot(epochs, errors[name], color=f"C{k}", label=name)
    axes.set(xscale="log", yscale=_scale(errors), xlabel="epoch", ylabel=label)
    axes.set_title("Validation error while training")
    axes.grid(alpha=0.3, which="both")
    axes.legend()
    return save(figure, path)


def _scale(curves: Mapping[str, Sequence[float]]) -> str:
    """A log scale if all values are positive."""
    return "log" if all(value > 0 for curve in curves.values() for value in curve) else "linear"


def parity(names: Mapping[str, str], true: np.ndarray, predicted: np.ndarray, path: Path) -> Path:
    """Draw predicted over true values (S, T), one panel per target.

    Args:
      names: the label of each target, ``quantity, unit``, by name.
      true, predicted: (S, T).
      path: the file.
    """
    columns = min(len(names), 4)
    rows = -(-len(names) // columns)
    figure, panels = subplots((4.5 * columns, 4.5 * rows), rows, columns, squeeze=False)
    for axes in panels.flat[len(names) :]:
        axes.axis("off")
    for k, (name, label) in enumerate(names.items()):
        axes = panels.flat[k]
        _predicted_over_true(axes, label, true[:, k], predicted[:, k], f"{name}: ")
        axes.locator_params(nbins=5)
    figure.tight_layout()
    return save(figure, path, dpi=110, tight=False)


def parity_and_errors(pairs: Mapping[str, tuple[np.ndarray, np.ndarray]], path: Path) -> Path:
    """Draw predicted over true numbers above a histogram of errors, one column per quantity.

    Args:
      pairs: true and predicted numbers (S,) by label, ``quantity, unit`` or ``quantity``.
      path: the file.
    """
    figure, panels = subplots((4.5 * len(pairs), 8), 2, len(pairs), squeeze=False)
    for (label, (true, predicted)), (above, below) in zip(pairs.items(), panels.T, strict=True):
        unit = _predicted_over_true(above, label, true, predicted)
        error = (predicted - true).ravel()
        # A logarithmic axis shows rare large errors, and is hard to read for small counts.
        bins = int(np.clip(error.size // 5, 10, 100))
        below.hist(error, bins=bins, log=error.size > 200)
        below.set(xlabel=f"error, {unit}" if unit else "error", ylabel="number")
    figure.tight_layout()
    return save(figure, path, dpi=110, tight=False)


def _predicted_over_true(
    axes: Any, label: str, true: np.ndarray, predicted: np.ndarray, title: str = ""
) -> str:
    """Draw one panel, and return the unit in the label, or ""."""
    unit = label.rpartition(", ")[2] if ", " in label else ""
    axes.plot(true, true, color="grey", lw=0.8)
    axes.scatter(true, predicted, s=np.clip(10_000 / true.size, 1, 25), alpha=0.3)
    axes.set(xlabel=f"true {label}", ylabel=f"predicted, {unit}" if unit else "predicted")
    error = np.abs(predicted - true).mean()
    axes.set_title(f"{title}mean absolute error {error:.4g} {unit}".rstrip(), fontsize=9)
    return unit


def dynamics(rows: np.ndarray, path: Path) -> Path:
    """Draw energies and temperature of a simulation over time.

    Args:
      rows: step, time (ps), potential, kinetic and total energy (eV) and temperature (K) of each
        frame (frames, 6).
      path: the file.
    """
    figure, (above, below) = subplots((7, 6), 2, sharex=True)
    _, times, potential, _, total, temperature = rows.T
    above.plot(times, potential - potential[0], lw=0.8, label="potential")
    above.plot(times, total - total[0], lw=0.8, label="total")
    above.set(ylabel="energy since the start, eV")
    above.legend(fontsize=8)
    below.plot(times, temperature, lw=0.8, color="tab:red")
    below.set(xlabel="time, ps", ylabel="temperature, K")
    figure.tight_layout()
    return save(figure, path, dpi=110, tight=False)


def trajectories(
    charges: np.ndarray, paths: np.ndarray, target: np.ndarray, predicted: np.ndarray, path: Path
) -> Path:
    """Draw systems of charged particles in 3-D, one panel per system.

    Args:
      charges: (S, M).
      paths: true positions (S, frames, M, 3), starting at the input frame.
      target, predicted: true and predicted final positions (S, M, 3).
      path: the file.
    """
    columns = -(-len(charges) // 2)
    figure, panels = subplots((4 * columns, 8), 2, columns, subplot_kw={"projection": "3d"})
    for s, axes in zip(range(len(charges)), panels.flat, strict=False):
        for k, charge in enumerate(charges[s]):
            color = "tab:red" if charge > 0 else "tab:blue"
            axes.plot(*paths[s, :, k].T, color=color, lw=1.5)
            axes.scatter(*paths[s, 0, k], color=color, s=12)
            axes.scatter(*target[s, k], facecolors="none", edgecolors=color, s=60)
            axes.scatter(*predicted[s, k], color="black", marker="x", s=30)
        axes.set_title(f"test {s}: mse {np.mean((predicted[s] - target[s]) ** 2):.4f}")
        axes.tick_params(labelsize=6)
    figure.suptitle(
        "1,000 steps of charged particles (red +, blue −): start •, true end ○, predicted end ×"
    )
    figure.tight_layout()
    return save(figure, path, tight=False)


def reconstructions(graphs: Mapping[str, tuple["nx.Graph", np.ndarray]], path: Path) -> Path:
    """Draw graphs, their reconstructions and both adjacency matrices, one row per graph.

    Missed and false edges are red; missed ones are dashed.

    Args:
      graphs: a graph of M nodes and decoded probabilities of its edges (M, M), by title.
      path: the file.
    """
    import networkx as nx

    figure, panels = subplots((12, 3 * len(graphs)), len(graphs), 4, squeeze=False)
    for row, (title, (true_graph, probability)) in zip(panels, graphs.items(), strict=True):
        decoded = nx.from_numpy_array(probability > 0.5)
        layout = nx.spring_layout(true_graph, seed=0)
        missed = nx.difference(true_graph, decoded).edges
        false = nx.difference(decoded, true_graph).edges
        for axes, graph in zip(row, (true_graph, decoded), strict=False):
            nx.draw_networkx(
                graph, layout, ax=axes, node_size=40, with_labels=False, edge_color="grey"
            )
            axes.axis("off")
        nx.draw_networkx_edges(
            true_graph, layout, missed, ax=row[1], edge_color="red", style="dashed"
        )
        nx.draw_networkx_edges(true_graph, layout, false, ax=row[1], edge_color="red")
        for axes, matrix in zip(row[2:], (nx.to_numpy_array(true_graph), probability), strict=True):
            axes.imshow(matrix, vmin=0, vmax=1, cmap="Greys")
            axes.tick_params(labelsize=6)
        edges = f"{len(true_graph)} nodes, {true_graph.number_of_edges()} edges"
        row[0].set_title(f"{title}: {edges}", fontsize=9)
        row[1].set_title(f"decoded: {len(missed)} missed, {len(false)} false", fontsize=9)
        row[2].set_title("adjacency", fontsize=9)
        row[3].set_title("decoded probabilities", fontsize=9)
    figure.tight_layout()
    return save(figure, path, dpi=110, tight=False)
