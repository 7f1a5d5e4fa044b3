"""Bonds and the chemistry of atoms: from SMILES and positions, kept on disk, in the graphs of the
QM9 task, and for molecules of one's own.
"""

import dataclasses
import sys

import ase
import chex
import jax
import numpy as np
import pytest
from ase.data import atomic_numbers

import egnn_jax as egnn
from egnn_jax import testing
from egnn_jax.data import bonds as bonds_of
from egnn_jax.data import chemistry, qm9, qm9_bonds, structures
from egnn_jax.data.chemistry import SOURCES, TRAITS
from egnn_jax.experiments.config import Config
from egnn_jax.experiments.optimizer import Optimizer
from egnn_jax.experiments.qm9 import QM9
from egnn_jax.experiments.run import train
from tests.conftest import GOLDEN

pytest.importorskip("rdkit")

SMILES = {3: "O", 19: "CC(N)=O", 830: "OCC(F)(F)F"}
"""Three molecules of QM9, whose positions and bonds are in the authors' golden file."""


def golden():
    """Atomic numbers, positions and matrix of bond kinds of each molecule, from the file."""
    with np.load(GOLDEN / "nmp_tf.npz") as file:
        z = dict(file)
    ends = np.cumsum(z["input/n_node"])
    for end, number in zip(ends, z["input/n_node"], strict=True):
        first = end - number
        own = (z["input/receivers"] >= first) & (z["input/receivers"] < end)
        kinds = np.zeros((number, number), int)
        kinds[z["input/receivers"][own] - first, z["input/senders"][own] - first] = z[
            "input/bond_type"
        ][own]
        yield z["input/atomic_numbers"][first:end], z["input/x"][first:end], kinds


MOLECULES = dict(zip(SMILES, golden(), strict=True))


def matrix(found, size):
    """Kinds of bonds as a symmetric matrix."""
    kinds = np.zeros((size, size), int)
    kinds[tuple(found.bond_atoms.T)] = found.bond_types
    return kinds + kinds.T


@pytest.mark.parametrize("number", SMILES)
def test_bonds_of_smiles_are_the_golden_ones(number):
    z, x, kinds = MOLECULES[number]
    found, source = chemistry.of_smiles(SMILES[number], z, x)
    assert SOURCES[source] == "in order"
    np.testing.assert_array_equal(matrix(found, len(z)), kinds)
    perceived = chemistry.perceived(z, x)
    for one, other in zip(found, perceived, strict=True):
        np.testing.assert_array_equal(one, other)


def test_traits_of_atoms():
    def of(number, *names):
        z, x, _ = MOLECULES[number]
        found, _ = chemistry.of_smiles(SMILES[number], z, x)
        return found.traits[:, [TRAITS.index(name) for name in names]].tolist()

    assert of(3, "acceptor", "donor", "sp3", "hydrogens")[0] == [0, 0, 1, 2]
    amide = of(19, "acceptor", "donor", "sp2", "hydrogens")
    assert amide[:4] == [[0, 0, 0, 3], [0, 0, 1, 0], [0, 1, 1, 2], [1, 0, 1, 0]]
    assert not np.any(amide[4:])  # hydrogens
    benzene = ase.Atoms(
        "C6H6",
        [
            [r * np.cos(k * np.pi / 3), r * np.sin(k * np.pi / 3), 0]
            for r in (1.39, 2.48)
            for k in range(6)
        ],
    )
    found = chemistry.perceived(benzene.numbers, benzene.positions)
    assert found.traits[:6, TRAITS.index("aromatic")].all()
    assert sorted(found.bond_types.tolist()) == [1] * 6 + [4] * 6
    hydrogen_cyanide = chemistry.perceived(
        np.array([6, 7, 1]), np.array([[0, 0, 0], [0, 0, 1.16], [0, 0, -1.07]])
    )
    assert hydrogen_cyanide.traits[:2, TRAITS.index("sp")].all()
    assert hydrogen_cyanide.bond_types.tolist() == [3, 1]


def test_atoms_in_another_order_are_found(rng):
    z, x, kinds = MOLECULES[19]
    order = rng.permutation(len(z))
    found, source = chemistry.of_smiles(SMILES[19], z[order], x[order])
    assert SOURCES[source] == "reordered"
    np.testing.assert_array_equal(matrix(found, len(z)), kinds[np.ix_(order, order)])
    in_order, _ = chemistry.of_smiles(SMILES[19], z, x)
    np.testing.assert_array_equal(found.traits, in_order.traits[order])


@pytest.mark.parametrize("smiles", ["CNC=O", "CCO", "no SMILES"])
def test_a_smiles_that_is_not_of_the_positions_is_set_aside(smiles):
    """An isomer, another formula, and none: the bonds are those of the positions."""
    z, x, kinds = MOLECULES[19]
    found, source = chemistry.of_smiles(smiles, z, x)
    assert SOURCES[source] == "by positions"
    np.testing.assert_array_equal(matrix(found, len(z)), kinds)


def test_atoms_far_apart_have_no_bonds():
    z, x, _ = MOLECULES[19]
    found, source = chemistry.of_smiles(SMILES[19], z, 3 * x)
    assert SOURCES[source] == "none"
    assert (len(found.bond_types), found.bond_atoms.shape, found.traits.any()) == (0, (0, 2), False)


@pytest.mark.parametrize(
    ("z", "x"),
    [
        ([8, 1], [[0, 0, 0], [0, 0, 0.96]]),  # a radical
        ([6, 1, 1, 1], [[0, 0, 0], [1, 0, 0], [-0.5, 0.9, 0], [-0.5, -0.9, 0]]),
        ([1, 1], [[0, 0, 0], [0, 0, 9.0]]),
    ],
)
def test_what_has_no_whole_bonds_is_refused(z, x):
    with pytest.raises(
        ValueError,
        match=r"its (bonds|positions) .*expected a whole, neutral molecule with all of its",
    ):
        chemistry.perceived(np.array(z), np.array(x, float))


def several(number=32):
    """A data set of the three molecules, each slightly distorted in each of its places."""
    rng = np.random.default_rng(0)
    chosen = [MOLECULES[list(SMILES)[k % 3]] for k in range(number)]
    n_atoms = np.array([len(z) for z, _, _ in chosen])
    x = np.concatenate([x + 0.01 * rng.standard_normal(x.shape) for _, x, _ in chosen])
    rows = np.split(np.arange(number), [number // 2, 3 * number // 4])
    return qm9.QM9(
        index=np.arange(1, number + 1),
        n_atoms=n_atoms,
        atomic_numbers=np.concatenate([z for z, _, _ in chosen]).astype(np.int8),
        positions=x.astype(np.float32),
        targets={name: 100 + 50 * rng.normal(size=number) for name in qm9.TARGETS},
        splits=dict(zip(("train", "valid", "test"), rows, strict=True)),
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory):
    """The data set, and its folder with the bonds."""
    folder, molecules = tmp_path_factory.mktemp("bonds"), several()
    texts = {int(k): list(SMILES.values())[(k - 1) % 3] for k in molecules.index} | {1: "[H]O[H]"}
    texts[2] = "CNC=O"  # an isomer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qm9_bonds, "smiles_of_package", lambda: texts)
        qm9_bonds.load(molecules, folder)
    return molecules, folder


@pytest.fixture
def data(own, monkeypatch):
    molecules, folder = own
    monkeypatch.setattr(qm9, "load", lambda: molecules)
    monkeypatch.setenv("EGNN_JAX_DATA", str(folder))
    monkeypatch.setattr(qm9_bonds, "smiles_of_package", None)  # read from the folder alone
    return molecules


def test_bonds_of_the_data_set_are_kept_and_exceptions_are_listed(data):
    bonds = qm9_bonds.load(data)
    numbers = bonds.numbers(data.index)
    assert numbers["by positions"] == [2]
    assert numbers["none"] == []
    ends = np.cumsum(bonds.n_bond)
    for k, size in enumerate(data.n_atoms):
        rows = slice(ends[k] - bonds.n_bond[k], ends[k])
        found = chemistry.Chemistry(
            bonds.bond_atoms[rows], bonds.bond_types[rows], bonds.traits[:0]
        )
        np.testing.assert_array_equal(matrix(found, size), MOLECULES[list(SMILES)[k % 3]][2])
    assert len(bonds.traits) == data.n_atoms.sum()
    assert bonds.bond_atoms.dtype == np.int8


@pytest.mark.parametrize("options", [{}, {"cutoff": 2.0}, {"bonds": "only"}])
def test_edges_carry_their_kind_of_bond(data, options):
    task = QM9(train_size=16, features="chemistry", **{"bonds": "attributes"} | options)
    samples = task.samples("train")
    for k in range(4):
        number = list(SMILES)[k % 3]
        z, _, kinds = MOLECULES[number]
        graph = task.graph(samples.pack(np.array([k])))
        real = slice(int(graph.n_edge[0]))
        i, j = np.asarray(graph.receivers[real]), np.asarray(graph.senders[real])
        a, x = np.asarray(graph.edges.a[real]), np.asarray(graph.nodes.x)
        np.testing.assert_array_equal(a, np.eye(5)[kinds[i, j]][:, 1:])
        pairs = {"cutoff": np.linalg.norm(x[:, None] - x, axis=-1)[: len(z), : len(z)] <= 2.0}
        pairs = pairs.get(next(iter(options), ""), kinds > 0 if options else np.ones_like(kinds))
        expected = np.array(pairs, bool) & ~np.eye(len(z), dtype=bool)
        got = np.zeros_like(expected)
        got[i, j] = True
        np.testing.assert_array_equal(got, expected)
        assert not np.asarray(graph.edges.a[int(graph.n_edge[0]) :]).any()
        h = np.asarray(graph.nodes.h[: len(z)])
        traits = chemistry.of_smiles(SMILES[number], z, MOLECULES[number][1])[0].traits
        np.testing.assert_array_equal(
            h, np.column_stack([z[:, None] == [1, 6, 7, 8, 9], z, traits])
        )


def test_elements_need_no_bonds(data, monkeypatch):
    monkeypatch.setattr(qm9_bonds, "load", None)
    task = QM9(train_size=16, features="elements")
    graph = task.graph(task.samples("train").pack(np.arange(2)))
    assert graph.nodes.h.shape[1] == 6
    assert graph.edges.a is None
    with pytest.raises(ValueError, match=r"task.cutoff is 3.0 where task.bonds is 'only'"):
        QM9(bonds="only", cutoff=3.0)


@pytest.mark.parametrize(
    ("model", "options"),
    [
        pytest.param(
            egnn.NMP(16, 2, 8, 1), {"features": "chemistry", "bonds": "attributes"},
            marks=pytest.mark.slow,
        ),
        pytest.param(
            egnn.FuchsTFN(4, 2, 1, 8), {"features": "elements", "bonds": "only"},
            marks=pytest.mark.slow,
        ),
        (
            egnn.EGNN(4, 1, update_coordinates=False),
            {"features": "chemistry", "bonds": "attributes"},
        ),
    ],
)  # fmt: skip
def test_a_network_on_bonds_trains_and_predicts_without_the_data(
    data, monkeypatch, tmp_path, model, options
):
    config = Config(
        QM9(train_size=16, targets=("homo", "mu"), **options),
        model,
        Optimizer(learning_rate=1e-2),
        epochs=2,
        batch_size=8,
        eval_every=1,
    )
    train(config, tmp_path / "run", callbacks=())
    egnn.export(tmp_path / "run", tmp_path / "one.safetensors")
    task = dataclasses.replace(config.task)
    network = egnn.load_pretrained(tmp_path / "run")
    rows = data.splits["test"]
    expected = task.predictions(network._apply, network.params, "test")
    monkeypatch.setattr(qm9, "load", None)
    monkeypatch.setattr(qm9_bonds, "load", None)
    ends = np.cumsum(data.n_atoms)
    atoms = [slice(ends[k] - data.n_atoms[k], ends[k]) for k in rows]
    structures = [ase.Atoms(data.atomic_numbers[own], data.positions[own]) for own in atoms]
    alone = egnn.load_pretrained(tmp_path / "one.safetensors")
    predicted = alone(structures)
    for k, name in enumerate(task.targets):
        np.testing.assert_allclose(predicted[name], expected[:, k], rtol=1e-4)
    broken = structures[1].copy()
    del broken[-1]  # a hydrogen
    with pytest.raises(ValueError, match="structure 1: its bonds cannot be derived"):
        alone([structures[0], broken])
    # The kind of a bond matters.
    graph = task.graph(task.samples("test").pack(np.arange(2)))
    other = graph._replace(edges=graph.edges.replace(a=graph.edges.a[:, ::-1]))
    assert np.abs(network(graph).globals.y - network(other).globals.y)[:2].max() > 1e-4


def test_nmp_takes_graphs_without_nodes():
    def graph(nodes):
        ends = egnn.complete_edges(nodes)
        return egnn.graph_from_edges(*ends, x=np.zeros((nodes, 3)), h=np.ones((nodes, 3)))

    model = egnn.NMP(features=8, layers=1)
    params = model.init(jax.random.key(0), graph(4))
    assert model.apply(params, graph(0)).nodes.h.shape == (0, 8)


def test_readouts_are_those_of_the_models(data):
    for model, readout in (
        (egnn.NMP(), egnn.Set2SetReadout),
        (egnn.MixedPrecision(egnn.NMP()), egnn.Set2SetReadout),
        (egnn.FuchsSE3Transformer(), egnn.MaxReadout),
        (egnn.EGNN(), egnn.Readout),
    ):
        assert type(QM9().network(model)) is readout


def test_a_batch_of_zeros_is_enough_for_the_parameters_of_nmp():
    """Flax may call a network on zeros for their shapes: a batch whose graphs have no nodes."""
    graph = testing.random_graph(n=3)
    zeros = jax.tree.map(np.zeros_like, graph)
    model = egnn.NMP(features=4, layers=1)
    shapes = jax.eval_shape(model.init, jax.random.key(0), graph)
    chex.assert_trees_all_equal_shapes(model.lazy_init(jax.random.key(0), zeros), shapes)


def test_a_molecule_too_large_for_nmp_is_seen():
    graph = egnn.complete_graph(x=np.random.default_rng(0).standard_normal((5, 3)))
    model = egnn.NMP(features=4, layers=1, max_nodes=4)
    with pytest.raises(ValueError, match="a graph has 5 nodes; expected at most max_nodes, 4"):
        model.init(jax.random.key(0), graph)
    params = egnn.NMP(features=4, layers=1).init(jax.random.key(0), graph)
    both = egnn.batch([graph, egnn.complete_graph(x=np.eye(3))], egnn.Budget(20, 40, 3))
    h = jax.jit(model.apply)(params, both).nodes.h
    assert np.isnan(h[:5]).all()
    assert np.isfinite(h[5:]).all()  # with the padding, which needs no place
    wide = egnn.complete_graph(x=np.eye(3), h=np.ones((3, 3)))
    with pytest.raises(ValueError, match="h has 3 features; expected at most 2"):
        egnn.NMP(features=2).init(jax.random.key(0), wide)


CHARGED = {"CC(=O)[O-]": -1, "C[NH3+]": 1, "[NH3+]CC(=O)[O-]": 0}


@pytest.mark.parametrize("smiles", CHARGED)
def test_bonds_of_an_ion_are_those_of_its_smiles_its_file_or_its_charge(smiles):
    """The three sources give the same bonds, in the order of the atoms of the geometry."""
    molecule = structures.from_smiles(smiles, smiles)
    assert molecule.charge == CHARGED[smiles]
    geometry = np.array([atomic_numbers[s] for s in molecule.symbols]), molecule.positions
    expected, source = chemistry.of_molecule(molecule, *geometry)
    assert SOURCES[source] == "in order"
    atoms = ase.Atoms(molecule.symbols, molecule.positions, info={"charge": CHARGED[smiles]})
    for given, name in (
        (structures.Smiles(smiles, "text"), "in order"),
        (dataclasses.replace(molecule, block=""), "by positions"),
        (atoms, "by positions"),
    ):
        found, source = chemistry.of_molecule(given, *geometry)
        assert SOURCES[source] == name
        np.testing.assert_array_equal(found.bond_atoms, expected.bond_atoms)
        np.testing.assert_array_equal(found.bond_types, expected.bond_types)
        np.testing.assert_array_equal(found.traits, expected.traits)
    for charge in (0.5, "1", np.nan, np.inf, 1j, [1]):
        atoms.info["charge"] = charge
        with pytest.raises(ValueError, match=r"its charge is .*; expected a whole number"):
            chemistry.of_molecule(atoms, *geometry)
    with pytest.raises(ValueError, match=r"its bonds are between atoms \[8, 1, 1\]; expected"):
        chemistry.of_molecule(structures.Smiles("O", "water"), *geometry)


def test_an_ion_without_its_charge_is_refused():
    acetate = structures.from_smiles("CC(=O)[O-]", "acetate")
    atoms = ase.Atoms(acetate.symbols, acetate.positions)
    arrays = np.array([len(atoms)]), atoms.numbers, atoms.positions
    with pytest.raises(ValueError, match=r"geometry 1 of 1: its .*a whole, neutral molecule with"):
        bonds_of.of_molecules([atoms], *arrays)
    atoms.info["charge"] = 1
    with pytest.raises(ValueError, match=r"a whole molecule of charge \+1 with all of its hydro"):
        bonds_of.of_molecules([atoms], *arrays)
    atoms.info["charge"] = -1
    assert bonds_of.of_molecules([atoms], *arrays).n_bond.tolist() == [6]


NITRO = ["O=[N+]([O-])c1ccccc1", "O=[N+]([O-])c1cc([N+](=O)[O-])cc([N+](=O)[O-])c1"]


@pytest.mark.parametrize("smiles", NITRO)
def test_bonds_from_positions_do_not_depend_on_the_order_of_the_atoms(smiles):
    """RDKit alone fails for some orders. The two oxygens of a nitro group may change places."""
    molecule = structures.from_smiles(smiles, "nitro", 1)
    z = np.array([atomic_numbers[s] for s in molecule.symbols])
    expected = chemistry.of_molecule(molecule, z, molecule.positions)[0]
    rng = np.random.default_rng(1)
    for _ in range(8):
        order = rng.permutation(len(z))
        found = chemistry.perceived(z[order], molecule.positions[order])
        got, want = matrix(found, len(z)), matrix(expected, len(z))[np.ix_(order, order)]
        np.testing.assert_array_equal(got > 0, want > 0)
        np.testing.assert_array_equal(np.sort(got.sum(0)), np.sort(want.sum(0)))
        carbon = z[order] == 6
        np.testing.assert_array_equal(got[carbon][:, carbon], want[carbon][:, carbon])
        np.testing.assert_array_equal(found.traits[carbon], expected.traits[order][carbon])


@pytest.mark.parametrize(("z", "charge"), [(11, 1), (17, -1), (2, 0), (1, -1)])
def test_a_lone_atom_has_no_hydrogens(z, charge):
    found = chemistry.perceived(np.array([z]), np.zeros((1, 3)), charge)
    assert not found.traits[0, TRAITS.index("hydrogens")]
    assert found.bond_atoms.shape == (0, 2)


@pytest.mark.parametrize(("z", "charge"), [(6, 0), (11, 0), (1, 0), (17, 0), (8, -1)])
def test_a_lone_atom_that_is_a_radical_is_refused(z, charge):
    with pytest.raises(ValueError, match="electrons unpaired; expected a whole"):
        chemistry.perceived(np.array([z]), np.zeros((1, 3)), charge)


@pytest.mark.parametrize(
    ("smiles", "z", "kind"),
    [("N->B", [5, 7, 1, 1, 1, 1, 1], "dative"), ("C$C", [6, 6], "quadruple")],
)
def test_bonds_of_other_kinds_are_refused(smiles, z, kind):
    molecule = structures.Smiles(smiles, "text")
    with pytest.raises(ValueError, match=f"a bond of the kind {kind}; expected single, double, tr"):
        bonds_of.of_molecules([molecule], np.array([len(z)]), np.array(z), np.zeros((len(z), 3)))


def test_a_bond_between_the_wrong_atoms_is_seen():
    """As if the positions were in the order of another version of RDKit."""
    molecule = structures.from_smiles("CCCCO", "butanol", 1)
    z = np.array([atomic_numbers[s] for s in molecule.symbols])
    chemistry.of_molecule(molecule, z, molecule.positions)
    x = molecule.positions.copy()
    x[[0, 3]] = x[[3, 0]]  # two carbons
    with pytest.raises(ValueError, match=r"its bond between atoms \d+ and \d+ is \d.\d times as"):
        chemistry.of_molecule(molecule, z, x)
    broken = dataclasses.replace(molecule, block="nothing")
    with pytest.raises(ValueError, match="its mol block cannot be read"):
        chemistry.of_molecule(broken, z, x)


def test_bonds_of_more_atoms_than_a_byte_counts():
    x = np.zeros((140, 3))
    x[:, 0] = np.repeat(np.arange(70) * 10, 2)
    x[1::2, 1] = 0.74
    found = chemistry.perceived(np.ones(140, int), x)  # 70 molecules of hydrogen
    np.testing.assert_array_equal(found.bond_atoms, np.arange(140).reshape(-1, 2))


def test_what_perceiving_bonds_needs_is_said(monkeypatch):
    monkeypatch.setitem(sys.modules, "rdkit", None)
    with pytest.raises(ValueError, match=r"expected what pip install 'egnn-jax\[chem\]' brings"):
        chemistry.perceived(np.array([1, 1]), np.eye(2, 3))
