"""Built-in sets: sizes, splits, sources; downloads from a local folder; and what goes wrong when there is none."""

import gzip
import io
import struct
import subprocess
import sys
import tarfile

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn import datasets

from pofx.data import DATASETS, check_training, encode, infer_domain, load, split
from pofx.data.downloads import REMOTES
from pofx.errors import DataError

LOCAL = [name for name, line in DATASETS.items() if not line.remote]
TABLES = [name for name, line in DATASETS.items() if line.kind == "table"]


@pytest.mark.parametrize("name", LOCAL)
def test_a_set_is_as_it_is_listed(name):
    one, line = load(name), DATASETS[name]
    assert (one.name, one.kind, one.licence, one.source) == (line.name, line.kind, line.licence, line.source)
    parts = [encode(part, one.domain) for part in (one.train, one.holdout, one.test)]
    assert sum(len(x) for x in parts) == line.rows
    assert len(one.domain) == line.columns
    for x in parts:
        check_training(x, one.domain)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_is_split_70_15_15_once_and_for_all(name):
    one, again = load(name), load(name)
    rows = DATASETS[name].rows
    assert len(one.train) == round(0.70 * rows)
    assert len(one.train) + len(one.holdout) == round(0.85 * rows)
    pd.testing.assert_frame_equal(one.train, again.train)
    whole = pd.concat([one.train, one.holdout, one.test], ignore_index=True)
    assert infer_domain(whole) == one.domain


def test_digits_are_scikit_learns_in_their_order():
    ours, theirs = load("digits"), datasets.load_digits()
    for part, rows in (("train", slice(0, 1000)), ("holdout", slice(1000, 1350)), ("test", slice(1350, None))):
        np.testing.assert_array_equal(getattr(ours, part), theirs.images[rows])
        np.testing.assert_array_equal(ours.labels[part], theirs.target[rows])
    assert ours.train.dtype == np.uint8
    assert {v.cardinality for v in ours.domain.variables} == {17}


@pytest.mark.parametrize("name", ["iris", "wine", "breast_cancer"])
def test_a_table_has_the_rows_of_scikit_learns_copy(name):
    ours = pd.concat([load(name).train, load(name).holdout, load(name).test])
    theirs = getattr(datasets, f"load_{name}")()
    target = ours.columns[-1]
    mine = np.column_stack((ours.drop(columns=target).to_numpy(float), pd.Index(theirs.target_names).get_indexer(ours[target])))
    expected = np.column_stack((theirs.data, theirs.target))
    np.testing.assert_array_equal(mine[np.lexsort(mine.T)], expected[np.lexsort(expected.T)])


def test_penguins_are_mixed_and_have_missing_cells():
    domain = load("penguins").domain
    assert [str(v.kind) for v in domain.variables][:2] == ["categorical"] * 2
    assert domain["sex"].kind == "binary"
    assert domain["year"].levels == (2007, 2008, 2009)
    assert domain["body_mass_g"].resolution == 25.0
    assert domain["bill_length_mm"].resolution == 0.1
    whole = pd.concat([load("penguins").train, load("penguins").holdout, load("penguins").test])
    assert whole.isna().sum().sum() == 19


def test_listing_the_sets_loads_neither_torch_nor_pandas():
    code = (
        "import sys; from pofx.data import DATASETS, names_a_set\n"
        "assert names_a_set('iris'); print({'torch', 'pandas', 'numpy'} & set(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "set()"


def test_a_split_is_a_partition_and_repeats():
    x = torch.arange(50.0)[:, None]
    rest, part = split(x, 0.2, torch.Generator().manual_seed(1))
    assert len(part) == 10
    assert torch.equal(torch.cat((rest, part)).sort(0).values, x)
    again = split(x, 0.2, torch.Generator().manual_seed(1))
    assert torch.equal(again[1], part)
    assert [len(p) for p in split(x[:2], 0.01, torch.Generator())] == [1, 1]


# -- downloads -------------------------------------------------------------------------------------


def idx(x):
    return struct.pack(f">BBBB{x.ndim}I", 0, 0, 8, x.ndim, *x.shape) + x.tobytes()


def pictures(n, shape=(4, 4)):
    rng = np.random.RandomState(n)
    return rng.randint(0, 256, (n, *shape)).astype(np.uint8), (np.arange(n) % 10).astype(np.uint8)


@pytest.fixture
def local(tmp_path, monkeypatch):
    """A function that puts files into the folder that POFX_DATA names."""
    monkeypatch.setenv("POFX_DATA", str(tmp_path))

    def put(name, **files):
        (tmp_path / name).mkdir(exist_ok=True)
        for file, content in files.items():
            (tmp_path / name / file).write_bytes(content)
        return tmp_path / name

    return put


def originals(train, test, *, zipped):
    pairs = zip(REMOTES["mnist"].files, (train[0], train[1], test[0], test[1]), strict=True)
    return {(f if zipped else f.removesuffix(".gz")): gzip.compress(idx(x)) if zipped else idx(x) for f, x in pairs}


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
@pytest.mark.parametrize("zipped", [True, False])
def test_original_files_are_read_from_a_folder(local, name, zipped):
    train, test = pictures(60), pictures(10)
    local(name, **originals(train, test, zipped=zipped))
    one = load(name)
    np.testing.assert_array_equal(one.train, train[0][:50])
    np.testing.assert_array_equal(one.holdout, train[0][50:])
    np.testing.assert_array_equal(one.labels["test"], test[1])
    assert one.domain.shape == (4, 4)
    assert {v.cardinality for v in one.domain.variables} == {256}


def test_an_npz_is_read_from_a_folder(local):
    train, test = pictures(60), pictures(10)
    content = io.BytesIO()
    np.savez(content, x_train=train[0], y_train=train[1], x_test=test[0], y_test=test[1])
    local("mnist", **{"mnist.npz": content.getvalue()})
    np.testing.assert_array_equal(load("mnist").test, test[0])


def test_cifar_is_read_from_its_archive(local):
    train, test = pictures(50, (3, 32, 32)), pictures(10, (3, 32, 32))
    parts = {f"data_batch_{k + 1}.bin": (train[0][10 * k : 10 * k + 10], train[1][10 * k : 10 * k + 10]) for k in range(5)}
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        for name, (x, y) in {**parts, "test_batch.bin": test}.items():
            content = np.column_stack((y, x.reshape(len(x), -1))).tobytes()
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    local("cifar10", **{"cifar-10-binary.tar.gz": gzip.compress(archive.getvalue())})
    one = load("cifar10")
    assert one.test.shape == (10, 32, 32, 3)
    np.testing.assert_array_equal(one.test, np.moveaxis(test[0], 1, -1))
    np.testing.assert_array_equal(encode(one.test, one.domain).reshape(10, 3, 32, 32), test[0])


DAMAGE = {
    "no IDX": ({"train-images-idx3-ubyte": b"not IDX"}, "no IDX file"),
    "cut short": ({"train-images-idx3-ubyte": idx(pictures(60)[0])[:-1]}, "should hold 960 bytes in shape (60, 4, 4), got 959"),
    "no gzip": ({"train-images-idx3-ubyte.gz": b"not gzip"}, "is damaged"),
    "no NPZ": ({"mnist.npz": b"not NPZ"}, "should hold the arrays x_train, y_train"),
}


@pytest.mark.parametrize(("files", "fragment"), DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_file_is_one_sentence(local, files, fragment):
    zipped = any(name.endswith(".gz") for name in files)
    local("mnist", **{**originals(pictures(60), pictures(10), zipped=zipped), **files})
    with pytest.raises(DataError) as caught:
        load("mnist")
    assert fragment in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_neither_folder_nor_pooch(monkeypatch):
    monkeypatch.delenv("POFX_DATA", raising=False)
    monkeypatch.setitem(sys.modules, "pooch", None)
    with pytest.raises(DataError, match=r"mnist is not shipped: put mnist.npz .* POFX_DATA names, or .* pip install 'pofx\[download\]'"):
        load("mnist")


def test_a_failed_download_is_one_sentence(monkeypatch, local):
    import pooch

    def no_network(*_, **__):
        raise OSError("no route to host")

    monkeypatch.setattr(pooch, "retrieve", no_network)
    with pytest.raises(DataError, match=r"cifar10 could not be downloaded \(OSError\): put cifar10.npz"):
        load("cifar10")


def test_a_download_is_checked_against_its_hash(monkeypatch, tmp_path):
    """The real pooch on a file of ours: the right hash is read, a wrong one refused."""
    import hashlib

    import pooch

    from pofx.data import downloads

    monkeypatch.delenv("POFX_DATA", raising=False)
    monkeypatch.setattr(pooch, "os_cache", lambda _: tmp_path / "cache")
    files = originals(pictures(12), pictures(6), zipped=True)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)

    class Copy:
        def __call__(self, url, output_file, _):
            from pathlib import Path

            Path(output_file).write_bytes((tmp_path / url.rpartition("/")[2]).read_bytes())

    def retrieve(url, **options):
        return real(url, downloader=Copy(), progressbar=False, **options)

    real = pooch.retrieve
    monkeypatch.setattr(pooch, "retrieve", retrieve)
    sums = {name: hashlib.md5(content, usedforsecurity=False).hexdigest() for name, content in files.items()}
    monkeypatch.setitem(REMOTES, "mnist", downloads.Remote("https://example.org/", sums, REMOTES["mnist"].parse))
    np.testing.assert_array_equal(load("mnist").test, pictures(6)[0])
    (tmp_path / "cache").rename(tmp_path / "old")
    wrong = dict.fromkeys(sums, "0" * 32)
    monkeypatch.setitem(REMOTES, "mnist", downloads.Remote("https://example.org/", wrong, REMOTES["mnist"].parse))
    with pytest.raises(DataError, match=r"could not be downloaded \(ValueError\)"):
        load("mnist")
