"""Data sets larger than memory: written graph by graph, whole or not at all; packed from files."""

import errno
import json
import os
import subprocess
import sys
import time

import ase.build
import ase.io
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ase.calculators.singlepoint import SinglePointCalculator

import egnn_jax as egnn
from egnn_jax.cli import main
from egnn_jax.data import labelled, storage
from egnn_jax.data.frames import Labels
from egnn_jax.experiments import config as configs
from egnn_jax.experiments.forces import Forces
from egnn_jax.experiments.run import train
from tests.helpers import ROOT, equal_runs, labelled_graphs


def equal_graphs(one, other):
    assert len(one) == len(other)
    rows = np.random.default_rng(0).permutation(len(one))[None]
    jax.tree.map(np.testing.assert_array_equal, one.pack(rows), other.pack(rows))
    for k in range(len(one)):
        jax.tree.map(np.testing.assert_array_equal, one[k], other[k])


def test_graphs_from_a_generator_are_those_in_memory(tmp_path):
    graphs = labelled_graphs()
    written = egnn.GraphDataset.write(tmp_path / "set", (g for g in graphs))
    equal_graphs(written, egnn.GraphDataset(graphs))
    assert isinstance(written._nodes.x, np.memmap)
    joined = [egnn.batch(graphs[:5]), *graphs[5:]]
    equal_graphs(egnn.GraphDataset.write(tmp_path / "joined", iter(joined)), written)
    equal_graphs(written.split(0.5)[0], egnn.GraphDataset(graphs).split(0.5)[0])
    for folder in ("set", "joined"):
        egnn.GraphDataset.open(tmp_path / folder, verify=True)
        assert {path.suffix for path in (tmp_path / folder).iterdir()} == {".npy", ".json"}
        assert os.stat(tmp_path / folder).st_mode & 0o777 == 0o777 & ~storage._umask()
    first, again = [(tmp_path / name / "manifest.json") for name in ("set", "again")]
    written.save(tmp_path / "again")
    assert first.read_bytes() == again.read_bytes()


def test_a_part_of_a_mapped_array_is_packed(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(30_000.0).reshape(10_000, 3))
    x = np.load(tmp_path / "x.npy", mmap_mode="r")
    sizes = np.full(1_000, 5)
    for part in (x[2_000:7_000], x[::2]):
        lists = np.zeros(1_000, int), np.zeros(0, np.int32), np.zeros(0, np.int32)
        data = egnn.GraphDataset.from_arrays(sizes, egnn.Nodes(h=None, x=part), edge_lists=lists)
        packed = data.pack(np.array([[999, 3, 500]]))
        np.testing.assert_array_equal(packed.nodes.x[0, 5:10], part[15:20])
        np.testing.assert_array_equal(packed.nodes.x[0, :5], part[-5:])


def test_other_targets_go_with_their_graphs(tmp_path):
    written = egnn.GraphDataset.write(tmp_path / "set", labelled_graphs())
    part = written[[7, 2, 2, 11]]
    y = np.arange(8.0).reshape(4, 2)
    other = part.with_targets(y)[[3, 1, 2]]
    np.testing.assert_array_equal(other.y, y[[3, 1, 2]])
    np.testing.assert_array_equal(other[0].nodes.x, written[11].nodes.x)
    np.testing.assert_array_equal(part.y, written.y[[7, 2, 2, 11]])
    h = np.concatenate([written[k].nodes.h for k in (11, 2, 2)])
    np.testing.assert_array_equal(other.node_features(), h)


def fails(graphs, fault):
    """Graphs, the last of them with a fault."""
    yield from graphs[:3]
    match fault:
        case "dtype":
            x = np.asarray(graphs[3].nodes.x, np.float16)
            yield graphs[3]._replace(nodes=graphs[3].nodes.replace(x=x))
        case "field":
            yield graphs[3]._replace(globals=egnn.Globals())
        case "padded":
            yield egnn.batch(graphs[3:4], egnn.Budget(9, 30, 3))
        case "reader":
            raise ValueError("the file ends within frame 3")
        case "full disk":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize(
    ("fault", "error", "message"),
    [
        ("dtype", ValueError, r"graph 3 carries .*nodes\.x.*float16.*expected .*float32.*graph 0"),
        ("field", ValueError, r"graph 3 carries .*expected .*globals\.y.* as graph 0"),
        ("padded", ValueError, r"graph 3 is a padded batch"),
        ("reader", ValueError, "the file ends within frame 3"),
        ("full disk", OSError, r"No space left on device: '.*/set'"),
    ],
)
def test_nothing_is_left_of_what_fails(tmp_path, fault, error, message):
    with pytest.raises(error, match=message):
        egnn.GraphDataset.write(tmp_path / "set", fails(labelled_graphs(), fault))
    assert not list(tmp_path.iterdir())


def test_no_graphs_are_no_data_set(tmp_path):
    with pytest.raises(ValueError, match="received no graphs"):
        egnn.GraphDataset.write(tmp_path / "set", iter(()))
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file exists; expected a new folder"):
        egnn.GraphDataset.write(tmp_path / "file", labelled_graphs())
    with pytest.raises(ValueError, match="file cannot be made"):
        egnn.GraphDataset.write(tmp_path / "file" / "set", labelled_graphs())
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_disk_that_is_full_at_the_end(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(storage.os, "fsync", full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/set'"):
        egnn.GraphDataset.write(tmp_path / "set", labelled_graphs())
    assert not list(tmp_path.iterdir())


CHILD = """
import sys
import numpy as np
from egnn_jax.data.dataset import GraphDataset
from egnn_jax.graph.graph import Edges, Globals, GraphsTuple, Nodes

def anonymous():
    with open("/proc/self/status", encoding="utf-8") as file:
        return next(int(line.split()[1]) for line in file if line.startswith("RssAnon")) / 1024

def graphs(number, n=20_000):
    for k in range(number):
        x = np.full((n, 3), k, np.float32)
        ends = np.arange(n, dtype=np.int32)
        yield GraphsTuple(Nodes(h=ends % 7, x=x), Edges(), ends, ends, Globals(),
                          np.array([n], np.int32), np.array([n], np.int32))
"""


def child(code, *arguments, **options):
    command = [sys.executable, "-c", CHILD + code, *map(str, arguments)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, **options)


def test_memory_is_bounded(tmp_path):
    """Writing, opening and packing 92 MB takes less than a third of it."""
    code = """
GraphDataset.write(sys.argv[1] + "-small", graphs(2)).pack(np.array([[0, 1]]))
before, most = anonymous(), 0.0
def watched():
    global most
    for graph in graphs(200):
        most = max(most, anonymous() - before)
        yield graph
data = GraphDataset.write(sys.argv[1], watched())
for k in range(0, 200, 2):
    packed = data.pack(np.array([[199 - k, k]]))
    assert packed.nodes.x[0, 0, 0] == 199 - k and packed.nodes.x[0, 20_000, 0] == k
    assert packed.receivers[0, 20_000] == 20_000
    most = max(most, anonymous() - before)
print(most)
"""
    process = child(code, tmp_path / "set")
    most = float(process.communicate()[0])
    assert process.returncode == 0
    size = sum(path.stat().st_size for path in (tmp_path / "set").iterdir()) / 2**20
    assert size > 90
    assert most < 30


def test_what_a_killed_process_leaves_is_no_data_set(tmp_path):
    path = tmp_path / "set"
    process = child("GraphDataset.write(sys.argv[1], graphs(10**9))", path)
    try:
        while not sum(file.stat().st_size for file in tmp_path.glob(".set.*/*.npy")) > 2**22:
            assert process.poll() is None
            time.sleep(0.05)
        # One that is being written is left alone.
        egnn.GraphDataset.write(tmp_path / "other", labelled_graphs())
        storage._remove_abandoned(path)
        assert len(list(tmp_path.glob(".set.*"))) == 1
    finally:
        process.kill()
        process.communicate()
    assert not path.exists()
    (left,) = tmp_path.glob(".set.*")
    for folder in (path, left):
        with pytest.raises(ValueError, match="holds no data set"):
            egnn.GraphDataset.open(folder)
    equal_graphs(
        egnn.GraphDataset.write(path, labelled_graphs()), egnn.GraphDataset(labelled_graphs())
    )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["other", "set"]


def test_of_two_writers_one_is_first(tmp_path):
    path = tmp_path / "set"

    def slow():
        yield from labelled_graphs(3)
        egnn.GraphDataset.write(path, labelled_graphs(5))
        yield from labelled_graphs(2)

    with pytest.raises(ValueError, match="set exists; expected a new folder"):
        egnn.GraphDataset.write(path, slow())
    assert len(egnn.GraphDataset.open(path, verify=True)) == 5
    assert [file.name for file in tmp_path.iterdir()] == ["set"]


@pytest.fixture
def written(tmp_path):
    egnn.GraphDataset.write(tmp_path / "set", labelled_graphs())
    return tmp_path / "set"


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "{}", '{"format": "egnn_jax.GraphDataset", "version": 2, "files": []}',
        '{"format": "egnn_jax.GraphDataset", "version": 2, "files": {"x.npy": 3}}',
        '{"format": "egnn_jax.GraphDataset", "version": 2, "files": {"x.npy": {"bytes": "1"}}}',
        '{"format": "egnn_jax.GraphDataset", "version": 3, "files": {}}',
        '{"format": "other", "version": 1, "files": {}}',
    ],
)  # fmt: skip
def test_a_damaged_manifest_is_refused(written, text):
    (written / "manifest.json").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="set holds no data set"):
        egnn.GraphDataset.open(written)


def test_a_damaged_header_is_refused(written):
    path = written / "nodes.x.npy"
    content = path.read_bytes()
    path.write_bytes(content.replace(b"'<f4'", b"'<i4'", 1))
    with pytest.raises(ValueError, match=r"nodes\.x\.npy is damaged: .*<i4"):
        egnn.GraphDataset.open(written)
    path.write_bytes(b"X" + content[1:])
    with pytest.raises(ValueError, match=r"nodes\.x\.npy is damaged"):
        egnn.GraphDataset.open(written)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    egnn.GraphDataset.open(written)
    with pytest.raises(ValueError, match=r"nodes\.x\.npy is damaged: its SHA-256"):
        egnn.GraphDataset.open(written, verify=True)


@pytest.mark.parametrize("name", ["n_node", "n_edge", "senders", "nodes.x"])
def test_a_manifest_without_an_array_is_refused(written, name):
    manifest = json.loads((written / "manifest.json").read_text("utf-8"))
    del manifest["files"][f"{name}.npy"]
    (written / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    with pytest.raises(ValueError, match=f"is damaged: it has no {name}.npy"):
        egnn.GraphDataset.open(written)


def test_numbers_of_graphs_that_do_not_fit_are_refused(written):
    path = written / "n_node.npy"
    counts = np.load(path)
    counts[0] += 1
    np.save(path, counts)
    with pytest.raises(ValueError, match=rf"nodes.x has not the {counts.sum()} rows of n_node"):
        egnn.GraphDataset.open(written)


def test_a_type_that_files_do_not_hold_is_refused(tmp_path):
    graph = egnn.complete_graph(x=np.eye(3), h=jnp.ones((3, 2), jnp.bfloat16))
    with pytest.raises(ValueError, match=r"nodes\.h is bfloat16; expected a dtype such as float32"):
        egnn.GraphDataset.write(tmp_path / "new", [graph])
    assert not list(tmp_path.iterdir())


def test_one_file_under_two_names_is_refused(files, tmp_path):
    again = tmp_path / "again.extxyz"
    again.symlink_to(files[0])
    with pytest.raises(ValueError, match="expected each once"):
        labelled.pack([files[0], str(again)], tmp_path / "new")


def test_data_sets_of_the_first_version_are_read(written):
    manifest = json.loads((written / "manifest.json").read_text(encoding="utf-8"))
    files = {
        name: {"bytes": entry["bytes"], "sha256": storage.sha256(written / name)}
        for name, entry in manifest["files"].items()
    }
    old = {"format": manifest["format"], "version": 1, "files": files}
    (written / "manifest.json").write_text(json.dumps(old), encoding="utf-8")
    equal_graphs(egnn.GraphDataset.open(written, verify=True), egnn.GraphDataset(labelled_graphs()))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Molecules of several elements and sizes, with forces, in two files."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("frames")
    made = []
    for k in range(50):
        atoms = ase.build.molecule(("H2O", "CH4", "CO2", "C2H6", "NH3")[k % 5])
        atoms.rattle(0.05, seed=k)
        energy, forces = -100.0 * len(atoms) + rng.normal(), rng.normal(size=(len(atoms), 3))
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
        if k % 3:
            atoms.info["config_type"] = ("warm", "hot")[k % 2]
        made.append(atoms)
    paths = folder / "one.extxyz", folder / "two.extxyz"
    ase.io.write(paths[0], made)
    ase.io.write(paths[1], made[:20])
    return [str(path) for path in paths]


@pytest.mark.parametrize("block", [7, 10_000])
def test_a_packed_file_trains_as_the_file_does(files, tmp_path, monkeypatch, capsys, block):
    monkeypatch.setattr(labelled, "BLOCK", block)
    monkeypatch.chdir(tmp_path)
    for name, file in zip(("one", "two"), files, strict=True):
        main(["pack", file, "--cutoff", "2", "--out", name])
    assert "20 structures; train on them by --task.train two" in capsys.readouterr().out
    from_file = Forces(train=files[0], valid="0.2", test=files[1], cutoff=2.0)
    packed = Forces(train="one", valid="0.2", test="two", cutoff=2.0)
    assert packed.constants() == from_file.constants()
    assert packed.elements == ("C", "H", "N", "O")
    for split in ("train", "valid", "test"):
        equal_graphs(packed.samples(split), from_file.samples(split))
        one, other = (task._structures[split] for task in (packed, from_file))
        for name in ("energy", "squared_forces", "config_type", "row"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))
        assert one.config_types == other.config_types
        assert set(one.config_types) == {"", "warm", "hot"}
        assert one.name(0) == other.name(0)
    batches = [t.samples("train").loader(4, 1).batches(1, 0, 5) for t in (packed, from_file)]
    jax.tree.map(np.testing.assert_array_equal, *batches)


def test_a_flipped_bit_is_not_trained_on(files, tmp_path):
    labelled.pack(files[:1], tmp_path / "one", cutoff=2.0)
    path = tmp_path / "one" / "nodes.x.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    task = Forces(train=str(tmp_path / "one"), valid="0.2", test="0.2", cutoff=2.0)
    with pytest.raises(ValueError, match=r"nodes\.x\.npy is damaged: its SHA-256 is not that of"):
        task.samples("train")


def test_several_files_are_one_folder(files, tmp_path):
    assert labelled.pack(files, tmp_path / "all", cutoff=2.0) == 70
    found = labelled.read(str(tmp_path / "all"), Labels(), 2.0)
    assert found[np.array([60])].name(0) == f"frame 10 of {files[1]}"
    single = labelled.read(files[1], Labels(), 2.0)
    equal_graphs(found[50:].graphs, single.graphs)
    with pytest.raises(ValueError, match="expected each once"):
        labelled.pack([files[0], files[0]], tmp_path / "twice")
    with pytest.raises(ValueError, match="all is a folder; expected files"):
        labelled.pack([str(tmp_path / "all")], tmp_path / "again")
    assert [path.name for path in tmp_path.iterdir()] == ["all"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cutoff": 3.0}, r"set was packed with cutoff 2\.0, not 3\.0; expected the same"),
        ({"stress": "stress"}, r"set was packed with stress '', not 'stress'"),
        ({"forces": ""}, r"set was packed with forces 'forces', not ''"),
        ({"energy_unit": "meV"}, r"set was packed with energy_unit 'eV', not 'meV'"),
    ],
)
def test_a_folder_is_trained_as_it_was_packed(files, tmp_path, options, message):
    labelled.pack(files[1:], tmp_path / "set", cutoff=2.0)
    with pytest.raises(ValueError, match=message):
        Forces(**{"train": str(tmp_path / "set"), "cutoff": 2.0} | options).samples("train")


def test_a_folder_without_labels_is_refused(written):
    with pytest.raises(ValueError, match="without labels; expected what egnn pack writes"):
        Forces(train=str(written)).samples("train")


@pytest.mark.slow
def test_a_run_on_a_packed_file_is_that_on_the_file(files, tmp_path):
    labelled.pack(files[:1], tmp_path / "set", cutoff=2.0)

    def run(name, source):
        plain = {
            "task": {"name": "forces", "train": source, "valid": "0.2", "test": "0.2"}
            | {"cutoff": 2.0},
            "model": {"name": "egnn", "features": 8, "layers": 1, "cutoff": 2.0}
            | {"coordinate_aggregation": "sum"},
            "epochs": 2,
            "batch_size": 4,
        }  # fmt: skip
        train(configs.from_dict(plain), tmp_path / name)
        return tmp_path / name

    equal_runs(run("one", files[0]), run("other", str(tmp_path / "set")))
    manifest = tmp_path / "set" / "manifest.json"
    manifest.write_text(manifest.read_text(encoding="utf-8") + " ", encoding="utf-8")
    with pytest.raises(ValueError, match="set has changed since"):
        run("other", str(tmp_path / "set"))


def test_an_array_of_no_rows_is_mapped(tmp_path):
    lonely = [egnn.radius_graph(np.eye(3) * k, 0.1) for k in (1.0, 2.0, 3.0)]
    assert not sum(len(graph.senders) for graph in lonely)
    equal_graphs(egnn.GraphDataset.write(tmp_path / "set", lonely), egnn.GraphDataset(lonely))


def test_graphs_without_coordinates_are_not_written(tmp_path):
    nodes = egnn.Nodes(h=np.arange(7.0)[:, None], x=None)
    data = egnn.GraphDataset.from_arrays(np.array([3, 4]), nodes)
    with pytest.raises(ValueError, match="a graph has no x; expected coordinates"):
        data.save(tmp_path / "set")
    assert not list(tmp_path.iterdir())
