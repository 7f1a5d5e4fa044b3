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
    machine_results = {
        name: result for name, result in results.items() if result.get("machine") == machine
    }
    newest = max(machine_results.values(), key=lambda result: result["date"])
    packages = ("python", "jax", "flax", "torch", "egnn-pytorch")
    paragraphs = [
        f"{newest['date']}; "
        + ", ".join(f"{package} {newest[package]}" for package in packages if package in newest)
        + ".\n"
    ]
    if rows := ratio_rows(machine_results):
        paragraphs.append(markdown(rows))
    left_out = [
        f"- {name} without {peer}: {reason}\n"
        for name, result in machine_results.items()
        for peer, reason in result.get("left_out", {}).items()
    ]
    paragraphs += ["".join(left_out)] if left_out else []
    if "data_small" in machine_results:
        ours, theirs = (
            machine_results["data_small"][f"small_{name}_s"] for name in ("ours", "numpy_loop")
        )
        paragraphs.append(
            f"All of `small`, from the time of a trajectory: {ours:.0f} s, and "
            f"{theirs / 60:.0f} minutes by the authors' loop.\n"
        )
    if "nbody_4_seeds" in machine_results:
        test, std, seconds = (
            machine_results["nbody_4_seeds"][key] for key in ("metrics", "std", "seconds")
        )
        paragraphs.append(
            f"N-body, 10,000 epochs of four seeds at once: {seconds / 4:.0f} s a seed, "
            f"test MSE {test['test']['mse']:.5f} ± {std['test']['mse']:.5f} "
            "(the paper: 0.0071).\n"
        )
    if "size" in machine_results:
        paragraphs.append(markdown(size_rows(machine_results["size"])))
        forward, gradient = (
            max(machine_results["size"][f"{part}_exponents"]) for part in ("forward", "gradient")
        )
        paragraphs.append(
            "EGNN(features=64, layers=4, edge_block=16_384); random points, listed cell by cell. "
            f"Time grows as nodes^{forward:.2f} and nodes^{gradient:.2f}; "
            f"the largest gradient takes {machine_results['size']['peak_gib']:.2f} GiB.\n"
        )
    return "\n".join(paragraphs)


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
            ratios = [result.get(f"ratio_vs_{peer}{suffix}") for suffix in ("", "_min", "_max")]
            row[PEERS[peer]] = (
                "–" if ratios[0] is None else "{:.2f} × ({:.2f} to {:.2f})".format(*ratios)
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
    machine_results = {
        name: result for name, result in results.items() if result.get("machine") == machine
    }
    cases = [name for name, result in machine_results.items() if "ours_ms" in result][::-1]
    size = 13, 1.5 + 0.45 * max(len(cases), 5)
    figure, (axes, growth) = subplots(size, 1, 2, width_ratios=(2, 1))
    figure.set_layout_engine("constrained")
    for k, (peer, label) in enumerate(PEERS.items()):
        points = [
            (machine_results[name][f"ratio_vs_{peer}"], y, name)
            for y, name in enumerate(cases)
            if f"ratio_vs_{peer}" in machine_results[name]
        ]
        for ratio, y, name in points:
            low, high = (
                machine_results[name][f"ratio_vs_{peer}_{bound}"] for bound in ("min", "max")
            )
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
    if "size" in machine_results:
        for part in ("forward", "gradient"):
            growth.plot(
                machine_results["size"]["nodes"],
                machine_results["size"][f"{part}_s"],
                marker="o",
                label=part,
            )
        growth.set(xscale="log", yscale="log", xlabel="nodes, 50 neighbors each", ylabel="s")
        growth.legend()
    else:
        growth.axis("off")
    for panel in (axes, growth):
        panel.grid(alpha=0.3)
    return save(figure, path)
