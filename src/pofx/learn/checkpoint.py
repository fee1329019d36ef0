"""A run on disk: one safetensors file, whole at every moment, that a later call goes on from.

The tensors are the run's state, the header holds one JSON text: what the run is (`identity`: family,
options, seed, data) and where it is (`facts`). Nothing in it is executed.
"""

import hashlib
import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from pofx.errors import FileError, OptionError

KEY = "pofx.checkpoint"
FORMAT = 1


def write_atomically(path: Path, content: bytes) -> None:
    """Write the file so that a kill, or a power cut, at any moment leaves the old or the new one, whole.

    A temporary file in the same folder is written, flushed to the disk, then renamed over the old one.

    Raises:
        FileError: the folder is missing or can not be written to.
    """
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        # os.open and not tempfile, so that the file's mode follows the user's umask.
        with os.fdopen(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        _flush_folder(path.parent)
    except OSError as error:
        raise FileError(f"can not write {path}: {error.strerror}") from error
    finally:
        part.unlink(missing_ok=True)


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":  # elsewhere a folder can not be opened
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def fingerprint(*tensors: Tensor | None) -> str:
    """A digest of types, shapes and bytes: equal for equal data, whatever device they are on."""
    digest = hashlib.blake2b(digest_size=16)
    for tensor in tensors:
        digest.update(b"none" if tensor is None else f"{tensor.dtype}{tuple(tensor.shape)}".encode())
        if tensor is not None:
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Checkpoint:
    """Where a run is saved, and what it must be to go on from there.

    Args:
        path: the file.
        identity: what the run is, as plain data; a file of another run is refused.
        every: seconds between two saves; 0 saves at every look.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], every: float) -> None:
        self.path = path
        self.identity = json.loads(json.dumps(identity))  # as it comes back from the file
        self.every = every

    def save(self, tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> None:
        """Put the run's state in the place of the file's last one."""
        text = json.dumps({"format": FORMAT, "identity": self.identity, "facts": facts})
        # Clones, because safetensors refuses tensors that share memory, as tied weights do.
        write_atomically(self.path, tensor_bytes({k: v.detach().cpu().clone() for k, v in tensors.items()}, {KEY: text}))

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
        """The saved state, or None when there is no file yet.

        Raises:
            FileError: the file is damaged or no checkpoint.
            OptionError: it belongs to another run; the sentence says in what it differs.
        """
        if not self.path.exists():
            return None
        text, tensors = self._read()
        if text.get("format") != FORMAT or not {"identity", "facts"} <= text.keys():
            raise FileError(f"{self.path} is a checkpoint of format {text.get('format')!r}, expected {FORMAT}")
        for difference in _differences(text["identity"], self.identity):
            raise OptionError(
                f"{self.path} is the checkpoint of another run: {difference}; give this run a file of its own, or remove that one"
            )
        return tensors, text["facts"]

    def _read(self) -> tuple[dict[str, Any], dict[str, Tensor]]:
        try:
            with safe_open(self.path, "pt") as file:
                text = json.loads((file.metadata() or {})[KEY])
                if not isinstance(text, dict):
                    raise TypeError("its header is no mapping")
                return text, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise FileError(f"{self.path} is no checkpoint of pofx, or a damaged one: {error}") from error


def _differences(there: Any, here: Mapping[str, Any], of: str = "") -> list[str]:  # noqa: ANN401
    found = []
    for name in sorted(here.keys() | there.keys()):
        old, new = there.get(name), here.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{name} ")
        elif old != new:
            found.append(f"its {of}{name} is {old!r}, this run's is {new!r}")
    return found
