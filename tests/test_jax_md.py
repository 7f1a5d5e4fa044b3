"""jax-md: its energies against the calculator's, simulations, and what is refused."""

import ase.build
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_md import quantity, simulate, space

import egnn_jax as egnn
from egnn_jax import testing

# jax-md's list of neighbors, in 64 bits.
pytestmark = pytest.mark.filterwarnings("ignore:scatter inputs have incompatible:FutureWarning")

CUTOFF = 3.0
MODEL = egnn.EGNN(features=6, layers=2, cutoff=CUTOFF, num_rbf=4, coordinate_aggregation="sum")


def trained(atoms, model=MODEL):
    """A potential with parameters of order one."""
    network = egnn.Potential(model)
    shapes = jax.eval_shape(network.init, jax.random.key(0), egnn.from_ase(atoms, cutoff=CUTOFF))
    return network, testing.randomise_parameters(shapes)


def crystal():
    """16 atoms in a triclinic cell of more than twice the cutoff and the skin."""
    atoms = ase.build.bulk("Cu", a=4.0, cubic=True).repeat((2, 2, 1))
    atoms.set_cell([[8.0, 0, 0], [0.7, 8.2, 0], [-0.4, 0.9, 7.9]], scale_atoms=True)
    atoms.rattle(0.2, seed=0)
    atoms.numbers[::3] = 6
    return atoms


def molecule(seed=0):
    atoms = ase.build.molecule("CH3CH2OH")
    atoms.rattle(0.1, seed=seed)
    return atoms


@pytest.mark.parametrize("fractional", [True, False])
def test_it_gives_what_the_calculator_gives(x64, fractional):
    atoms = crystal()
    network, params = trained(atoms)
    atoms.calc = egnn.ASECalculator(network, params)
    box = jnp.asarray(atoms.cell.array.T)
    displacement, _ = space.periodic_general(box, fractional_coordinates=fractional)
    neighbor_fn, energy_fn = egnn.jax_md.energy(
        network, params, displacement, box, atoms.numbers, fractional_coordinates=fractional
    )
    R = atoms.get_scaled_positions() if fractional else atoms.get_positions(wrap=True)
    neighbor = neighbor_fn.allocate(jnp.asarray(R))
    value, gradient = jax.jit(jax.value_and_grad(energy_fn))(jnp.asarray(R), neighbor)
    np.testing.assert_allclose(value, atoms.get_potential_energy(), rtol=1e-10)
    np.testing.assert_allclose(-gradient, atoms.get_forces(), atol=1e-8)
    strained = jax.grad(
        lambda strain: energy_fn(jnp.asarray(R), neighbor, perturbation=jnp.eye(3) + strain)
    )(jnp.zeros((3, 3)))
    stress = (strained + strained.T) / 2 / atoms.get_volume()
    assert np.abs(stress).max() > 1e-4
    np.testing.assert_allclose(stress, atoms.get_stress(voigt=False), atol=1e-9)


def test_edges_back_and_forth_are_known_in_a_periodic_box():
    """DimeNet++ leaves out the way back, though jax-md's displacements differ in the last bit."""
    rng = np.random.default_rng(0)
    atoms = ase.Atoms("C14", rng.uniform(0, 8, (14, 3)), cell=[8.0] * 3, pbc=True)
    model = egnn.DimeNetPP(
        features=6, layers=1, num_radial=3, num_spherical=3, angular_features=4, basis_features=3,
        output_features=4, cutoff=CUTOFF,
    )  # fmt: skip
    network, params = trained(atoms, model)
    atoms.calc = egnn.ASECalculator(network, params)
    displacement, _ = space.periodic(8.0)
    neighbor_fn, energy_fn = egnn.jax_md.energy(network, params, displacement, 8.0, atoms.numbers)
    R = jnp.asarray(atoms.positions, jnp.float32)
    value = energy_fn(R, neighbor_fn.allocate(R))
    np.testing.assert_allclose(value, atoms.get_potential_energy(), rtol=1e-5)


def test_atoms_half_a_box_apart_are_not_at_the_same_place(x64):
    """jax-md's displacement of half a box has the same sign in both directions."""
    atoms = ase.Atoms("CO", [[0.0, 0, 0], [4.9, 0, 0]], cell=[10.0] * 3, pbc=True)
    network, params = trained(atoms, egnn.SchNet(features=6, layers=1, num_rbf=5, cutoff=4.0))
    displacement, _ = space.periodic(10.0)
    neighbor_fn, energy_fn = egnn.jax_md.energy(
        network, params, displacement, 10.0, atoms.numbers, dr_threshold=1.0
    )
    neighbor = neighbor_fn.allocate(jnp.asarray(atoms.positions))
    far, half, near = (
        energy_fn(jnp.array([[0.0, 0, 0], [d, 0, 0]]), neighbor) for d in (4.9, 5.0, 0.0)
    )
    np.testing.assert_allclose(half, far, rtol=1e-12)
    assert abs(near - far) > 1e-4


def test_forces_are_nan_too_where_the_box_has_become_too_small(x64):
    atoms = crystal()
    network, params = trained(atoms)
    box = jnp.asarray(atoms.cell.array.T)
    displacement, _ = space.periodic_general(box)
    neighbor_fn, energy_fn = egnn.jax_md.energy(
        network, params, displacement, box, atoms.numbers, fractional_coordinates=True
    )
    R = jnp.asarray(atoms.get_scaled_positions())
    neighbor = neighbor_fn.allocate(R)
    for size, finite in ((1.0, True), (0.7, False)):
        energy = lambda R, box: energy_fn(R, neighbor, box=box)
        value, gradients = jax.value_and_grad(energy, (0, 1))(R, size * box)
        assert np.isfinite(value) == finite
        assert all(np.isfinite(g).any() == finite for g in gradients)


@pytest.mark.parametrize(
    "model",
    [pytest.param(
         egnn.PaiNN(features=6, layers=2, num_rbf=4, cutoff=CUTOFF), marks=pytest.mark.slow
     ),
     pytest.param(
         egnn.TensorNet(features=6, layers=1, num_rbf=4, cutoff=CUTOFF), marks=pytest.mark.slow
     ),
     egnn.SchNet(features=6, layers=2, num_rbf=5, cutoff=CUTOFF)],
    ids=lambda model: type(model).__name__,
)  # fmt: skip
def test_other_models_in_free_space(x64, model):
    atoms = molecule()
    network, params = trained(atoms, model)
    atoms.calc = egnn.ASECalculator(network, params)
    neighbor_fn, energy_fn = egnn.jax_md.energy(
        network, params, space.free()[0], None, atoms.numbers
    )
    R = jnp.asarray(atoms.positions)
    value, gradient = jax.value_and_grad(energy_fn)(R, neighbor_fn.allocate(R))
    np.testing.assert_allclose(value, atoms.get_potential_energy(), rtol=1e-10)
    np.testing.assert_allclose(-gradient, atoms.get_forces(), atol=1e-8)


def test_energy_is_kept_while_neighbors_come_and_go(x64):
    atoms = crystal()
    network, params = trained(atoms)
    box = jnp.asarray(atoms.cell.array.T)
    displacement, shift = space.periodic_general(box)
    neighbor_fn, energy_fn = egnn.jax_md.energy(
        network, params, displacement, box, atoms.numbers, dr_threshold=0.3,
        fractional_coordinates=True,
    )  # fmt: skip
    R = jnp.asarray(atoms.get_scaled_positions())
    neighbor = neighbor_fn.allocate(R, extra_capacity=2)
    init, step = simulate.nve(energy_fn, shift, 0.02)
    state = init(jax.random.key(0), R, kT=0.5, mass=50.0, neighbor=neighbor)

    def total(state, neighbor):
        kinetic = quantity.kinetic_energy(momentum=state.momentum, mass=state.mass)
        return energy_fn(state.position, neighbor) + kinetic

    @jax.jit
    def run(state, neighbor):
        def body(carry, _):
            state, neighbor = carry
            neighbor = neighbor.update(state.position)
            state = step(state, neighbor=neighbor)
            return (state, neighbor), (total(state, neighbor), neighbor.reference_position[0, 0])

        return jax.lax.scan(body, (state, neighbor), None, length=400)

    (_, neighbor), (energies, references) = run(state, neighbor)
    assert not neighbor.did_buffer_overflow
    assert len(np.unique(references)) > 3  # lists were made anew
    kinetic = float(total(state, neighbor) - energy_fn(state.position, neighbor))
    assert np.ptp(energies) < 2e-3 * kinetic


@pytest.mark.slow
def test_constant_pressure_changes_the_box(x64):
    atoms = crystal()
    network, params = trained(atoms)
    box = jnp.diag(jnp.array([8.0, 8.0, 8.0]))
    displacement, shift = space.periodic_general(box)
    neighbor_fn, energy_fn = egnn.jax_md.energy(
        network, params, displacement, box, atoms.numbers, fractional_coordinates=True
    )
    R = jnp.asarray(atoms.get_scaled_positions())
    neighbor = neighbor_fn.allocate(R, box=box, extra_capacity=4)
    init, step = simulate.npt_nose_hoover(energy_fn, shift, 0.01, pressure=-0.05, kT=0.05)
    state = init(jax.random.key(0), R, box=box, mass=50.0, neighbor=neighbor)
    step = jax.jit(step)
    for _ in range(20):
        now = simulate.npt_box(state)
        neighbor = neighbor.update(state.position, box=now)
        state = step(state, neighbor=neighbor)
    now = simulate.npt_box(state)
    assert now[0, 0] > 8.0
    assert np.isfinite(energy_fn(state.position, neighbor, box=now))
    # Of a box that is too small for one image a neighbor there is no energy.
    assert np.isnan(energy_fn(state.position, neighbor, box=0.8 * box))


def test_several_systems_are_simulated_as_one(x64):
    first, second = molecule(0), molecule(1)
    both = first + second  # in the same place
    network, params = trained(first)
    systems = np.repeat([0, 1], len(first))
    neighbor_fn, energy_fn = egnn.jax_md.energy(
        network, params, space.free()[0], None, both.numbers, systems=systems
    )
    R = jnp.asarray(both.positions)
    value, gradient = jax.value_and_grad(energy_fn)(R, neighbor_fn.allocate(R))
    for atoms in (first, second):
        atoms.calc = egnn.ASECalculator(network, params)
    expected = [atoms.get_potential_energy() for atoms in (first, second)]
    np.testing.assert_allclose(value, sum(expected), rtol=1e-10)
    forces = np.concatenate([atoms.get_forces() for atoms in (first, second)])
    np.testing.assert_allclose(-gradient, forces, atol=1e-8)


def test_what_is_refused():
    atoms = crystal()
    network, params = trained(atoms)
    free = space.free()[0]
    box = atoms.cell.array.T

    def energy(box=box, numbers=atoms.numbers, network=network, **options):
        return egnn.jax_md.energy(network, params, free, box, numbers, **options)

    with pytest.raises(ValueError, match=r"7.0 Å from face to face|7 Å from face to face"):
        energy(box=np.array([9.0, 7.0, 9.0]), dr_threshold=1.0)
    energy(box=np.array([9.0, 7.0, 9.0]), dr_threshold=0.5)
    with pytest.raises(ValueError, match=r"the box is 7\.\d+ Å .* at least 10 Å"):
        energy(dr_threshold=2.0)
    with pytest.raises(ValueError, match=r"numbers are float64 \(16,\)"):
        energy(numbers=atoms.numbers + 0.0)
    counting = egnn.Potential(MODEL.clone(coordinate_aggregation="all_nodes"))
    with pytest.raises(ValueError, match="counts the atoms of all systems; expected 'sum'"):
        energy(network=counting, box=None, systems=np.zeros(16, int))
    with pytest.raises(ValueError, match="systems are given with a box"):
        energy(systems=atoms.numbers)
    with pytest.raises(ValueError, match=r"systems are int64 \(3,\); expected integers \(16,\)"):
        energy(box=None, systems=[0, 1, 2])
    for options, message in (
        ({"dr_threshold": -1.0}, "dr_threshold is -1.0; expected a finite number"),
        ({"box": np.full((2, 3), 9.0)}, r"the box has shape \(2, 3\)"),
        ({"box": 9 * np.eye(3) + np.eye(3, k=-1)}, "expected lattice vectors as columns of an upp"),
        ({"numbers": np.zeros(0, int)}, r"numbers are int64 \(0,\)"),
        ({"box": None, "systems": np.full(16, np.nan)}, r"systems are float64 \(16,\)"),
        ({"format": 0}, "format is given"),
    ):
        with pytest.raises(ValueError, match=message):
            energy(**options)
    with pytest.raises(ValueError, match=r"potential is a EGNN; expected an egnn\.Potential"):
        energy(network=MODEL)
    with pytest.raises(ValueError, match="TFN has no cutoff"):
        energy(network=egnn.Potential(egnn.TFN()))


def test_a_rollout_of_jax_mds_steps_is_differentiated_by_the_parameters(x64):
    """The gradient of the end by a parameter, against a difference quotient; the overflow."""
    atoms = molecule()
    network, params = trained(atoms)
    displacement, shift = space.free()
    neighbor_fn, energy_fn = egnn.jax_md.energy(network, params, displacement, None, atoms.numbers)
    init, apply = simulate.nve(energy_fn, shift, 0.01)
    start = jnp.asarray(atoms.positions)
    neighbor = neighbor_fn.allocate(start)
    state = init(jax.random.key(0), start, kT=0.0, mass=10.0, neighbor=neighbor)

    def step(params, state):
        dynamics, neighbor = state
        neighbor = neighbor.update(dynamics.position)
        return apply(dynamics, neighbor=neighbor, params=params), neighbor

    @jax.jit
    def end(scale):
        scaled = jax.tree.map(lambda a: scale * a, params)
        dynamics, _ = egnn.rollout(step, scaled, (state, neighbor), 16).state
        return jnp.linalg.norm(dynamics.position[0] - dynamics.position[3])

    slope = (end(1 + 1e-5) - end(1 - 1e-5)) / 2e-5
    assert jax.jit(jax.grad(end))(1.0) == pytest.approx(float(slope), rel=1e-6)
    assert abs(slope) > 1e-4
    few = neighbor_fn.allocate(3.0 * start)  # atoms so far apart that few are neighbors
    with pytest.raises(ValueError, match="the neighbor list overflowed"):
        egnn.rollout(step, params, (state, few), 2)
