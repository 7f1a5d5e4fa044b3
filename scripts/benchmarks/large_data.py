"""Training on a data set larger than memory: memory use, and time per step.

Writes perturbed aspirins (../shared/data) as graphs to ``runs/large_data``, and trains on them in a
process with limited memory, by a cgroup if permitted. Then it trains on a part of them in a single
process, alternating between memory-mapped and in-memory data. Run it on a quiet machine.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

GIB, MIB = 2**30, 2**20
BATCH, CHUNK, PART, CUTOFF = 10, 20, 20_000, 5.0
CGROUPS = Path("/sys/fs/cgroup")


def memory() -> dict[str, float]:
    """Resident memory of this process in MiB: anonymous, file-backed (page cache), and peak."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    values = dict(line.split(":", 1) for line in lines)
    return {name: int(values[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile", "VmHWM")}


class Watch(threading.Thread):
    """Peak anonymous memory of this process, sampled every 20 ms."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.start()

    def run(self) -> None:
        """Sample the memory repeatedly."""
        while True:
            self.peak = max(self.peak, memory()["RssAnon"])
            time.sleep(0.02)


def limit(size: int) -> tuple[str, Path | None]:
    """Limit the memory of this process, page cache included; return the limit and its cgroup."""
    for base, name in ((CGROUPS, "memory.max"), (CGROUPS / "memory", "memory.limit_in_bytes")):
        group = base / f"egnn_large_data_{os.getpid()}"
        try:
            group.mkdir()
            if not (group / name).is_file():  # a plain folder
                raise FileNotFoundError(group / name)
            (group / name).write_text(str(size), encoding="utf-8")
            (group / "cgroup.procs").write_text(str(os.getpid()), encoding="utf-8")
        except OSError:
            if group.is_dir():
                group.rmdir()
            continue
        return f"cgroup, {name} = {size / GIB:g} GiB with the page cache", group
    return "none: no rights to a cgroup; see the resident memory", None


def graphs(size: int) -> Iterator[Any]:
    """Yield aspirins with atoms moved by 0.01 Å and their frame's neighbors, up to a size."""
    import jax
    import numpy as np

    from egnn_jax.data import labelled
    from egnn_jax.data.frames import Labels

    dataset = labelled.read("rmd17_aspirin_train.xyz.gz", Labels(), CUTOFF)
    samples = dataset.samples(dataset.fit_e0s()[0])
    frames = [samples[k] for k in range(len(samples))]
    rng = np.random.default_rng(0)
    written = 0
    while written < size:
        graph = frames[rng.integers(len(frames))]
        x = graph.nodes.x + 0.01 * rng.standard_normal(graph.nodes.x.shape, np.float32)
        yield graph._replace(nodes=graph.nodes.replace(x=x))
        written += sum(leaf.nbytes for leaf in jax.tree.leaves(graph))


def write(folder: Path, size: int) -> dict[str, Any]:
    """Write the data set."""
    import egnn_jax as egnn

    watch, start = Watch(), time.perf_counter()
    data = egnn.GraphDataset.write(folder, graphs(size))
    seconds = time.perf_counter() - start
    written = sum(path.stat().st_size for path in folder.iterdir())
    return {
        "graphs": len(data),
        "GiB": written / GIB,
        "MiB/s": written / MIB / seconds,
        "anonymous MiB": watch.peak,
    }


def train(data: dict[str, Any], steps: int) -> dict[str, dict[str, float]]:
    """Train on several data sets in turn, on one core, while another packs.

    Returns:
      By name: ms per step, the part of it that the host packs, and compute alone.
    """
    import jax
    import numpy as np
    import optax

    import egnn_jax as egnn
    from egnn_jax.training.distributed import use_all_cores

    use_all_cores()
    model = egnn.PaiNN(features=64, layers=3, cutoff=CUTOFF)
    potential = egnn.Potential(model)
    loss = egnn.losses.energy_forces(potential)
    optimizer = optax.adam(1e-4)
    loaders = {name: samples.loader(BATCH) for name, samples in data.items()}

    def step(state: Any, batch: Any) -> Any:
        params, opt_state = state
        value, gradient = jax.value_and_grad(lambda p: loss(p, batch, key)[0])(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), value

    key = jax.random.PRNGKey(0)
    chunk = jax.jit(lambda state, batches: jax.lax.scan(step, state, batches))
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in data}

    def pack(name: str, k: int) -> Any:
        start = k * CHUNK % (loaders[name].num_batches(0) - CHUNK)
        return jax.tree.map(lambda a: a[:, 0], loaders[name].batches(0, start, CHUNK))

    states, batches = {}, {}
    for name, samples in data.items():
        params = potential.init(key, samples[0])
        states[name] = params, optimizer.init(params)
        batches[name] = pack(name, 0)
        jax.block_until_ready(chunk(states[name], batches[name]))  # compiles
    for k in range(max(steps // CHUNK, 2)):
        for name in data:
            step_start = time.perf_counter()
            running = chunk(states[name], batches[name])
            pack_start = time.perf_counter()
            batches[name] = pack(name, k + 1)
            pack_end = time.perf_counter()
            states[name], losses = jax.block_until_ready(running)
            step_end = time.perf_counter()
            jax.block_until_ready(chunk(states[name], batches[name]))
            compute_time = time.perf_counter() - step_end
            times[name].append((step_end - step_start, pack_end - pack_start, compute_time))
            if not np.isfinite(np.asarray(losses)).all():
                raise ValueError(f"the loss of {name} is not finite")
    columns = ("ms a step", "ms to pack it", "ms of compute alone")
    return {
        name: dict(zip(columns, (1e3 * np.median(durations, axis=0) / CHUNK).tolist(), strict=True))
        for name, durations in times.items()
    }


def mapped(folder: Path, steps: int) -> dict[str, Any]:
    """Train on the whole data set from its files."""
    import egnn_jax as egnn

    for path in folder.iterdir():  # drop pages that the page cache still has from writing
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    watch = Watch()
    data = egnn.GraphDataset.open(folder)
    result: dict[str, Any] = train({"all": data}, steps)
    return result | {"anonymous MiB": watch.peak} | memory()


def mapped_and_in_memory(folder: Path, steps: int) -> dict[str, Any]:
    """Train on a part of the data, alternating between files and memory."""
    import egnn_jax as egnn

    subset = egnn.GraphDataset.open(folder)[:PART]
    in_memory = egnn.GraphDataset(subset[k] for k in range(len(subset)))
    return dict(train({"mapped": subset, "in memory": in_memory}, steps))


def main() -> None:
    """Run all parts, each in its own process."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=4.0, help="of the data set")
    parser.add_argument("--limit-gib", type=float, default=2.0, help="of the memory to train in")
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--folder", type=Path, default=Path("runs/large_data"))
    parser.add_argument(
        "--keep", action="store_true", help="leave the data set there, and take one that is there"
    )
    parser.add_argument("--part", choices=("write", "mapped", "both"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    folder = options.folder / f"graphs_{options.gib:g}GiB"
    if options.part:
        result: dict[str, Any]
        if options.part == "write":
            result = write(folder, int(options.gib * GIB))
        elif options.part == "mapped":
            limit_text, _ = limit(int(options.limit_gib * GIB))
            result = {"limit": limit_text} | mapped(folder, options.steps)
        else:
            result = mapped_and_in_memory(folder, options.steps)
        print(json.dumps(result))
        return
    if not options.gib >= 0.1:  # some thousands of batches
        parser.error(f"--gib is {options.gib}; expected at least 0.1")
    if folder.exists() and not options.keep:
        parser.error(f"{folder} exists; expected --keep, or another --folder")
    results = {}
    try:
        for part in ("write", "mapped", "both"):
            if part == "write" and folder.exists():
                continue
            command = [sys.executable, __file__, *sys.argv[1:], "--part", part]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                output, _ = process.communicate()
                for base in (CGROUPS, CGROUPS / "memory"):
                    group = base / f"egnn_large_data_{process.pid}"
                    if group.is_dir():
                        group.rmdir()
            if process.returncode:
                sys.exit(f"{part} failed with {process.returncode}")
            results[part] = json.loads(output.splitlines()[-1])
            print(part, json.dumps(results[part], indent=2), flush=True)
        text = json.dumps(results, indent=2)
        (options.folder / "result.json").write_text(text, encoding="utf-8")
    finally:
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
