"""Time molecular dynamics of ethanol, ours and PyTorch's, and forces in large silicon crystals.

PYTHONPATH=scripts python -m benchmarks.dynamics --repeats 5

Ethanol: velocity Verlet steps at a cutoff of 5 Å, compiled as a whole with jax-md, and with ASE;
the peer is PyG's SchNet, in a plain loop and with ASE. Contenders take turns; ours and PyTorch's
run in two processes, each with all cores. Silicon: energy and forces of a crystal with jax-md.
Parameters are random, since speed does not depend on them.
"""

import argparse
import functools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from benchmarks import costs, measure

from egnn_jax._launch import number_of_cores
from egnn_jax.experiments.tables import markdown

STEPS = 200
CUTOFF = 5.0
TIMESTEP = 1e-3  # with random forces, atoms move little and neighbor lists last, as in a crystal
CELLS = (5, 6, 8, 10)
"""Number of cubic cells of 8 silicon atoms along each axis."""


def models() -> dict[str, Any]:
    """Our networks, by name."""
    import egnn_jax as egnn

    return {
        "EGNN 64 x 4": egnn.EGNN(
            features=64, layers=4, cutoff=CUTOFF, num_rbf=8, coordinate_aggregation="sum"
        ),
        "PaiNN 64 x 3": egnn.PaiNN(features=64, layers=3, cutoff=CUTOFF),
        "SchNet 64 x 3": egnn.SchNet(features=64, layers=3, num_rbf=50, cutoff=CUTOFF),
        "TensorNet 64 x 2": egnn.TensorNet(features=64, layers=2, num_rbf=8, cutoff=CUTOFF),
        "EGNN 32 x 3": egnn.EGNN(
            features=32, layers=3, cutoff=CUTOFF, num_rbf=8, update_coordinates=False
        ),
        "TensorNet 32 x 2": egnn.TensorNet(features=32, layers=2, num_rbf=8, cutoff=CUTOFF),
    }


ETHANOL = ("EGNN 64 x 4", "PaiNN 64 x 3", "SchNet 64 x 3", "TensorNet 64 x 2")
SILICON = ("EGNN 32 x 3", "SchNet 64 x 3", "PaiNN 64 x 3", "TensorNet 32 x 2")


def ethanol() -> Any:
    """The molecule, at rest."""
    import ase.build

    atoms = ase.build.molecule("CH3CH2OH")
    atoms.set_momenta(np.zeros((len(atoms), 3)))
    return atoms


@functools.cache
def potential(name: str) -> tuple[Any, Any]:
    """Create a potential with random parameters."""
    import jax

    import egnn_jax as egnn

    network = egnn.Potential(models()[name])
    return network, network.init(jax.random.key(0), egnn.from_ase(ethanol(), cutoff=CUTOFF))


@functools.cache
def contender(name: str, driver: str) -> Callable[[], None]:
    """Return a warmed-up function that runs :data:`STEPS` steps."""
    run = {"ase": in_ase, "loop": in_torch if name == "PyG" else in_jax_md}[driver](name)
    run()
    return run


def seconds_per_step(name: str, driver: str) -> float:
    """Time one step of a contender."""
    run = contender(name, driver)
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) / STEPS


def in_jax_md(name: str) -> Callable[[], None]:
    """Run jax-md's NVE steps, compiled as one function with the neighbor updates."""
    import jax
    import jax.numpy as jnp
    from jax_md import simulate, space

    import egnn_jax as egnn

    atoms = ethanol()
    displacement, shift = space.free()
    neighbor_fn, energy_fn = egnn.jax_md.energy(*potential(name), displacement, None, atoms.numbers)
    position = jnp.asarray(atoms.positions, jnp.float32)
    mass = jnp.asarray(atoms.get_masses(), jnp.float32)[:, None]
    neighbor = neighbor_fn.allocate(position)
    init, step = simulate.nve(energy_fn, shift, TIMESTEP)
    state = init(jax.random.key(0), position, kT=0.0, mass=mass, neighbor=neighbor)

    def body(_: Any, carry: Any) -> Any:
        state, neighbor = carry
        neighbor = neighbor.update(state.position)
        return step(state, neighbor=neighbor), neighbor

    run = jax.jit(lambda carry: jax.lax.fori_loop(0, STEPS, body, carry))
    return lambda: jax.block_until_ready(run((state, neighbor)))


def in_ase(name: str) -> Callable[[], None]:
    """Run ASE's velocity Verlet steps."""
    from ase.md.verlet import VelocityVerlet

    import egnn_jax as egnn

    atoms = ethanol()
    atoms.calc = torch_calculator() if name == "PyG" else egnn.ASECalculator(*potential(name))
    dynamics = VelocityVerlet(atoms, TIMESTEP)
    return lambda: dynamics.run(STEPS)


def torch_forces() -> Callable[[Any], tuple[Any, Any]]:
    """Energy and forces at positions (9, 3) by a PyG SchNet of the same size as ours."""
    import torch
    from torch_geometric.nn import SchNet

    torch.manual_seed(0)
    torch.set_num_threads(number_of_cores())

    def neighbors(x: Any, _: Any) -> tuple[Any, Any]:
        distance = torch.cdist(x, x)
        adjacency = (distance < CUTOFF).fill_diagonal_(False)
        edge_index = adjacency.nonzero().t()
        return edge_index, (x[edge_index[0]] - x[edge_index[1]]).norm(dim=-1)

    network = SchNet(64, 64, 3, 50, CUTOFF, interaction_graph=neighbors)
    numbers = torch.as_tensor(ethanol().numbers)

    def forces(x: Any) -> tuple[Any, Any]:
        x = x.detach().requires_grad_()
        energy = network(numbers, x).sum()
        (gradient,) = torch.autograd.grad(energy, x)
        return energy.detach(), -gradient

    return forces


def in_torch(name: str) -> Callable[[], None]:
    """Run velocity Verlet in a plain PyTorch loop."""
    import torch

    forces = torch_forces()
    atoms = ethanol()
    initial_x = torch.as_tensor(atoms.positions, dtype=torch.float32)
    mass = torch.as_tensor(atoms.get_masses(), dtype=torch.float32)[:, None]

    def run() -> None:
        x, v = initial_x, torch.zeros_like(initial_x)
        force = forces(x)[1]
        for _ in range(STEPS):
            v = v + TIMESTEP / 2 * force / mass
            x = x + TIMESTEP * v
            force = forces(x)[1]
            v = v + TIMESTEP / 2 * force / mass

    return run


def torch_calculator() -> Any:
    """Create an ASE calculator of PyG's SchNet."""
    import torch
    from ase.calculators.calculator import Calculator, all_changes

    forces = torch_forces()

    class SchNetCalculator(Calculator):
        # ASE declares it without ClassVar, so type checkers do not let subclasses add it.
        implemented_properties = ["energy", "forces"]  # noqa: RUF012

        def calculate(
            self, atoms: Any = None, properties: Any = None, system_changes: Any = all_changes
        ) -> None:
            super().calculate(atoms, properties, system_changes)
            energy, force = forces(torch.as_tensor(atoms.positions, dtype=torch.float32))
            self.results = {"energy": float(energy), "forces": force.numpy().astype(float)}

    return SchNetCalculator()


def silicon(name: str, cells: int, repeats: int) -> tuple[int, float]:
    """Measure a silicon crystal: number of atoms, and median time (s) of energy and forces."""
    import ase.build
    import jax
    import jax.numpy as jnp
    from jax_md import space

    import egnn_jax as egnn

    atoms = ase.build.bulk("Si", cubic=True).repeat(cells)
    atoms.rattle(0.05, seed=0)
    box = jnp.asarray(atoms.cell.lengths(), jnp.float32)
    neighbor_fn, energy_fn = egnn.jax_md.energy(
        *potential(name), space.periodic(box)[0], box, atoms.numbers, dr_threshold=0.2,
        capacity_multiplier=1.1,
    )  # fmt: skip
    position = jnp.asarray(atoms.get_positions(wrap=True), jnp.float32)
    neighbor = neighbor_fn.allocate(position)
    run = jax.jit(jax.value_and_grad(energy_fn))
    times = []
    for _ in range(repeats + 1):  # the first compiles
        start = time.perf_counter()
        jax.block_until_ready(run(position, neighbor))
        times.append(time.perf_counter() - start)
    return len(atoms), float(np.median(times[1:]))


def main() -> None:
    """Measure and print tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5, help="measurements of each (5)")
    parser.add_argument("--skip-silicon", action="store_true")
    parser.add_argument("--skip-ethanol", action="store_true")
    arguments = parser.parse_args()
    rows = []
    with measure.worker() as our_worker, measure.worker() as peer_worker:
        print(our_worker(costs.machine)["machine"])
        for driver in () if arguments.skip_ethanol else ("loop", "ase"):
            calls = dict.fromkeys(ETHANOL, our_worker) | {"PyG": peer_worker}
            times = [
                {name: call(seconds_per_step, name, driver) for name, call in calls.items()}
                for _ in range(arguments.repeats + 1)
            ][1:]
            for name in calls:
                ratios = [repeat["PyG"] / repeat[name] for repeat in times]
                rate = 1 / np.median([repeat[name] for repeat in times])
                rows.append(
                    {
                        "ethanol": "SchNet 64 x 3, PyG" if name == "PyG" else name,
                        "way": {"loop": "compiled or plain loop", "ase": "ASE"}[driver],
                        "steps/s": f"{rate:,.0f}",
                        "times PyG's": f"{np.median(ratios):.1f} ({min(ratios):.1f} to "
                        f"{max(ratios):.1f})",
                    }
                )
    if rows:
        print(markdown(rows))
    rows = []
    for name in () if arguments.skip_silicon else SILICON:
        with measure.worker() as our_worker:
            measurements = [our_worker(silicon, name, cells, arguments.repeats) for cells in CELLS]
        atoms, times = np.array(measurements).T
        exponent = np.polyfit(np.log(atoms), np.log(times), 1)[0]
        columns = {f"{n:,.0f} atoms (ms)": f"{1e3 * t:.0f}" for n, t in measurements}
        rows.append({"silicon": name} | columns | {"exponent": f"{exponent:.2f}"})
    if rows:
        print(markdown(rows))


if __name__ == "__main__":
    main()
