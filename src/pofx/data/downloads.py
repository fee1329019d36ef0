"""Image sets that are too large to ship: from a local folder, or downloaded with a hash check.

Looked for in this order: ``POFX_DATA/NAME/NAME.npz`` (arrays x_train, y_train, x_test, y_test), the original files in
``POFX_DATA/NAME`` (compressed or not), the download cache, the network (through pooch, the extra ``download``).
"""

import gzip
import math
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pofx.errors import DataError

VARIABLE = "POFX_DATA"


class Images(NamedTuple):
    """Pictures (N, H, W) or (N, H, W, 3) of bytes, and their labels."""

    x_train: NDArray[np.uint8]
    y_train: NDArray[np.uint8]
    x_test: NDArray[np.uint8]
    y_test: NDArray[np.uint8]


Opened = Callable[[str], bytes]


@dataclass(frozen=True)
class Remote:
    """Where a set's original files are.

    Args:
        base: the address that file names are appended to.
        files: file name -> md5.
        parse: from a function that gives the bytes of a file to the images.
    """

    base: str
    files: dict[str, str]
    parse: Callable[[Opened], Images]


def load_images(name: str) -> Images:
    """The images of a set, local or downloaded.

    Raises:
        DataError: they are neither there nor to be had, or a file is damaged.
    """
    folder = Path(os.environ[VARIABLE]) / name if os.environ.get(VARIABLE) else None
    if folder is not None and (folder / f"{name}.npz").is_file():
        return _from_npz(folder / f"{name}.npz")
    remote = REMOTES[name]
    local = folder is not None and all(_present(folder, file) for file in remote.files)
    return remote.parse(lambda file: _local(folder, file) if local and folder else _fetched(name, file))


def _from_npz(path: Path) -> Images:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return Images(*(arrays[field] for field in Images._fields))
    except (OSError, ValueError, KeyError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise DataError(f"{path} should hold the arrays {', '.join(Images._fields)}: {_line(error)}") from error


def _present(folder: Path, file: str) -> bool:
    return (folder / file).is_file() or (folder / file.removesuffix(".gz")).is_file()


def _local(folder: Path, file: str) -> bytes:
    plain = folder / file.removesuffix(".gz")
    if plain.is_file() and plain.name != file:
        return plain.read_bytes()
    return _unpacked(folder / file)


def _unpacked(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged: {_line(error)}") from error


def _fetched(name: str, file: str) -> bytes:
    """The bytes of a file, downloaded once and checked against its md5 each time.

    Raises:
        DataError: pooch is not installed, or the network or the hash fails.
    """
    remote = REMOTES[name]
    where = f"put {name}.npz or the original files into a folder {name} in the folder that {VARIABLE} names"
    try:
        import pooch
    except ImportError:
        raise DataError(f"{name} is not shipped: {where}, or install the download extra, pip install 'pofx[download]'") from None
    try:
        path = pooch.retrieve(
            remote.base + file,
            known_hash=f"md5:{remote.files[file]}",
            fname=file,
            path=pooch.os_cache("pofx") / name,
        )
    except Exception as error:  # requests, urllib and pooch raise types of their own: to the user it is one thing
        raise DataError(f"{name} could not be downloaded ({type(error).__name__}): {where}") from error
    return _unpacked(Path(path))


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]


# -- formats ---------------------------------------------------------------------------------------


def _idx_images(opened: Opened) -> Images:
    x_train, y_train = _idx(opened, "train-images-idx3-ubyte.gz"), _idx(opened, "train-labels-idx1-ubyte.gz")
    return Images(x_train, y_train, _idx(opened, "t10k-images-idx3-ubyte.gz"), _idx(opened, "t10k-labels-idx1-ubyte.gz"))


def _idx(opened: Opened, file: str) -> NDArray[np.uint8]:
    """IDX: two zero bytes, the type (8: unsigned bytes), the number of axes, their lengths (big-endian), the entries."""
    raw = opened(file)
    axes = raw[3] if len(raw) >= 4 and raw[:3] == b"\0\0\x08" else 0
    if not 1 <= axes <= 4 or len(raw) < 4 + 4 * axes:
        raise DataError(f"{file} is no IDX file of bytes, or it is cut short")
    shape = struct.unpack(f">{axes}I", raw[4 : 4 + 4 * axes])
    if len(raw) != 4 + 4 * axes + math.prod(shape):
        raise DataError(f"{file} should hold {math.prod(shape)} bytes in shape {shape}, got {len(raw) - 4 - 4 * axes}")
    return np.frombuffer(raw, dtype=np.uint8, offset=4 + 4 * axes).reshape(shape)


def _cifar_images(opened: Opened) -> Images:
    archive = opened("cifar-10-binary.tar.gz")
    parts = dict(_cifar_parts(archive))
    names = [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]
    for name in names:
        if name not in parts:
            raise DataError(f"cifar-10-binary.tar.gz has no {name}")
    records = [np.frombuffer(parts[name], dtype=np.uint8).reshape(-1, 3073) for name in names]
    train, test = np.concatenate(records[:-1]), records[-1]
    return Images(_pictures(train), train[:, 0], _pictures(test), test[:, 0])


def _cifar_parts(archive: bytes) -> Iterator[tuple[str, bytes]]:
    """The batches in the archive, read where they lie: nothing is unpacked to disk."""
    with tarfile.open(fileobj=BytesIO(archive)) as tar:
        for member in tar:
            content: Any = tar.extractfile(member) if member.name.endswith(".bin") else None
            if content is not None:
                yield Path(member.name).name, content.read()


def _pictures(records: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """One label byte, then 32 x 32 reds, greens, blues; colours last, as pictures are held elsewhere."""
    return np.moveaxis(records[:, 1:].reshape(-1, 3, 32, 32), 1, -1)


REMOTES = {
    "mnist": Remote(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        {
            "train-images-idx3-ubyte.gz": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "train-labels-idx1-ubyte.gz": "d53e105ee54ea40749a09fcbcd1e9432",
            "t10k-images-idx3-ubyte.gz": "9fb629c4189551a2d022fa330f9573f3",
            "t10k-labels-idx1-ubyte.gz": "ec29112dd5afa0611ce80d1b7f02629c",
        },
        _idx_images,
    ),
    "fashion_mnist": Remote(
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        {
            "train-images-idx3-ubyte.gz": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "train-labels-idx1-ubyte.gz": "25c81989df183df01b3e8a0aad5dffbe",
            "t10k-images-idx3-ubyte.gz": "bef4ecab320f06d8554ea6380940ec79",
            "t10k-labels-idx1-ubyte.gz": "bb300cfdad3c16e7a12a480ee83cd310",
        },
        _idx_images,
    ),
    "cifar10": Remote(
        "https://www.cs.toronto.edu/~kriz/",
        {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"},
        _cifar_images,
    ),
}
