"""The results of ``make benchmark`` as tables and a plot."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from egnn_jax.experiments.plots import save, subplots
from egnn_jax.experiments.tables import markdown

Results = Mapping[str, Mapping[str, Any]]

PEERS = {
    "torch_eager": "PyTorch",
    "torch_compiled": "the same, compiled",
    "egnn_pytorch": "egnn-pytorch",
    "textbook_jax": "textbook JAX",
    "numpy_loop": "NumPy loop",
    "reference": "authors' checkout",
}


def text(results: Results, machine: str) -> str:
    """Format the results of one machine in Markdown, with its versions."""
    mine = {name: result for name, result in results.items() if result.get("machine") == machine}
    newest = max(mine.values(), key=lambda result: result["date"])
    kinds = ("python", "jax", "flax", "torch", "egnn-pytorch")
    parts = [
        f"{newest['date']}; "
        + ", ".join(f"{kind} {newest[kind]}" for kind in kinds if kind in newest)
        + ".\n"
    ]
    if rows := ratio_rows(mine):
        parts.append(markdown(rows))
    left_out = [
        f"- {name} without {who}: {why}\n"
        for name, r in mine.items()
        for who, why in r.get("left_out", {}).items()
    ]
    parts += ["".join(left_out)] if left_out else []
    if "data_small" in mine:
        ours, theirs = (mine["data_small"][f"small_{who}_s"] for who in ("ours", "numpy_loop"))
        parts.append(
            f"All of `small`, from the time of a trajectory: {ours:.0f} s, and "
            f"{theirs / 60:.0f} minutes by the authors' loop.\n"
        )
    if "nbody_4_seeds" in mine:
        test, std, seconds = (mine["nbody_4_seeds"][key] for key in ("metrics", "std", "seconds"))
        parts.append(
            f"N-body, 10,000 epochs of four seeds at once: {seconds / 4:.0f} s a seed, "
            f"test MSE {test['test']['mse']:.5f} ± {std['test']['mse']:.5f} "
            "(the paper: 0.0071).\n"
        )
    if "size" in mine:
        parts.append(markdown(size_rows(mine["size"])))
        forward, gradient = (
            max(mine["size"][f"{part}_exponents"]) for part in ("forward", "gradient")
        )
        parts.append(
            "EGNN(features=64, layers=4, edge_block=16_384); random points, listed cell by cell. "
            f"Time grows as nodes^{forward:.2f} and nodes^{gradient:.2f}; "
            f"the largest gradient takes {mine['size']['peak_gib']:.2f} GiB.\n"
        )
    return "\n".join(parts)


def ratio_rows(results: Results) -> list[dict[str, str]]:
    """One row per case: our time, the floor, and each peer's time relative to ours."""
    present = [
        peer for peer in PEERS if any(f"ratio_vs_{peer}" in result for result in results.values())
    ]
    rows = []
    for name, result in results.items():
        if "ours_ms" not in result:
            continue
        row = {"case": name, "ours (ms)": f"{result['ours_ms']:.3g}"}
        row["floor (ms)"] = f"{result['floor_ms']:.3g}" if "floor_ms" in result else "–"
        for peer in present:
            found = [result.get(f"ratio_vs_{peer}{which}") for which in ("", "_min", "_max")]
            row[PEERS[peer]] = (
                "–" if found[0] is None else "{:.2f} × ({:.2f} to {:.2f})".format(*found)
            )
        rows.append(row | {"date": result["date"]})
    return rows


def size_rows(result: Mapping[str, Any]) -> list[dict[str, str]]:
    """One row per graph: time, floor and memory of the forward pass and the gradient."""
    rows = []
    for k, nodes in enumerate(result["nodes"]):
        row = {"nodes": f"{nodes:,}", "edges": f"{result['forward_edges'][k]:,}"}
        for part in ("forward", "gradient"):
            row |= {
                f"{part} (s)": f"{result[f'{part}_s'][k]:.3g}",
                f"{part}: floor (s)": f"{result[f'{part}_floor_s'][k]:.3g}",
            }
            row[f"{part}: peak (GiB)"] = f"{result[f'{part}_peak_gib'][k]:.2f}"
        rows.append(row)
    return rows


def draw(results: Results, machine: str, path: Path) -> Path:
    """Plot the ratios of each case and, if measured, time versus graph size."""
    mine = {name: result for name, result in results.items() if result.get("machine") == machine}
    cases = [name for name, result in mine.items() if "ours_ms" in result][::-1]
    size = 13, 1.5 + 0.45 * max(len(cases), 5)
    figure, (axes, growth) = subplots(size, 1, 2, width_ratios=(2, 1))
    figure.set_layout_engine("constrained")
    for k, (peer, label) in enumerate(PEERS.items()):
        points = [
            (mine[name][f"ratio_vs_{peer}"], y, name)
            for y, name in enumerate(cases)
            if f"ratio_vs_{peer}" in mine[name]
        ]
        for ratio, y, name in points:
            low, high = (mine[name][f"ratio_vs_{peer}_{which}"] for which in ("min", "max"))
            height = y + 0.1 * (2 - k)
            axes.plot([low, high], [height, height], color=f"C{k}", lw=1.5)
            axes.plot(
                ratio,
                height,
                "o",
                color=f"C{k}",
                label=None if (ratio, y, name) != points[0] else label,
            )
    axes.axvline(1, color="black", lw=0.8)
    axes.set(
        xscale="log",
        yticks=range(len(cases)),
        yticklabels=cases,
        xlabel="times as long as ours takes",
        title=machine,
    )
    if cases:
        axes.legend(fontsize=8)
    if "size" in mine:
        for part in ("forward", "gradient"):
            growth.plot(mine["size"]["nodes"], mine["size"][f"{part}_s"], marker="o", label=part)
        growth.set(xscale="log", yscale="log", xlabel="nodes, 50 neighbors each", ylabel="s")
        growth.legend()
    else:
        growth.axis("off")
    for panel in (axes, growth):
        panel.grid(alpha=0.3)
    return save(figure, path)
