"""A learned p(x) as one safetensors file, and back.

The header holds one JSON text: family, options, domain, record, and a digest of text and tensors.
Nothing in a file is executed. Whatever is wrong with a file, `read` says so in one FileError:
sizes and names are checked on a skeleton without storage before anything is built, the digest
catches flipped bits, and a probe (a few rows with the log_prob they had when saved) catches a file
that opens to another p(x) than the one that was saved.
"""

import hashlib
import json
import os
import struct
from os import PathLike
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor

from pofx.ask.origin import Origin
from pofx.data import Container
from pofx.domain import Domain
from pofx.errors import FileError, PofxError
from pofx.learn import Record, versions, write_atomically
from pofx.models import composed
from pofx.models.base import Model
from pofx.models.registry import family as registered

FORMAT = 1
KEY = "pofx"
PROBE_X, PROBE_LOG_PROB = "probe.x", "probe.log_prob"
PROBE_ROWS = 4
MAX_HEADER = 64 * 2**20


class Header(BaseModel):
    """The JSON text of a file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: int = Field(FORMAT, ge=1)
    pofx: str
    family: str
    options: dict[str, Any]
    table: dict[str, Any]
    given: list[str]
    container: Container
    incomplete: bool
    seed: int
    record: dict[str, Any]


def save(path: str | PathLike[str], model: Model, origin: Origin, container: Container, seed: int) -> None:
    """Write a learned model, atomically: a kill at any moment leaves the old or the new file, whole.

    Raises:
        OptionError: the family is not registered, so that no one could open the file.
    """
    registered(origin.family)
    text = _header(model, origin, container, seed).model_dump_json()
    tensors = {f"model.{name}": t.detach().cpu().contiguous() for name, t in model.state_dict().items()} | _probe(model, seed)
    write_atomically(Path(path), tensor_bytes(tensors, {KEY: text, "digest": digest(text, tensors)}))


class Opened(NamedTuple):
    """What a file holds, built."""

    model: Model
    origin: Origin
    container: Container
    seed: int


def read(path: str | PathLike[str], device: str = "cpu") -> Opened:
    """The model that `save` wrote.

    Raises:
        FileError: the file is missing, damaged, foreign, or made by a later version.
    """
    header, tensors = read_file(path)
    try:
        return _rebuilt(header, tensors, device)
    except FileError as error:
        raise FileError(f"{path}: {error}") from error
    except (PofxError, ValidationError, RuntimeError, TypeError, KeyError, IndexError, OverflowError, MemoryError) as error:
        raise FileError(f"{path} does not describe a model this version can build: {_line(error)}") from error


def read_file(path: str | PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """The checked header and the tensors of a file; nothing is built.

    Raises:
        FileError: the file is missing, damaged, foreign, or made by a later version.
    """
    raw = _bytes(Path(path))
    metadata = _metadata(path, raw)
    try:
        tensors = parse_tensors(raw)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise FileError(f"{path} is damaged: {_line(error)}") from error
    if metadata.get("digest") != digest(metadata[KEY], tensors):
        raise FileError(f"{path} is damaged: its contents do not match its digest")
    return _parsed(path, metadata[KEY]), tensors


def _header(model: Model, origin: Origin, container: Container, seed: int) -> Header:
    return Header(
        format=FORMAT,
        pofx=versions()["pofx"],
        family=origin.family,
        options=origin.config.model_dump(mode="json"),
        table=origin.table.to_json(),
        given=list(model.context.names) if model.context else [],
        container=container,
        incomplete=origin.incomplete,
        seed=seed,
        record=origin.record.to_json(),
    )


def _probe(model: Model, seed: int) -> dict[str, Tensor]:
    """A few rows of the model's own and their log_prob: what opening the file must give back."""
    c = _no_condition(model)
    x = model.sample(PROBE_ROWS, c, generator=torch.Generator(_device(model)).manual_seed(seed))
    return {PROBE_X: x.cpu().contiguous(), PROBE_LOG_PROB: _probed(model, x, seed).cpu()}


def _probed(model: Model, x: Tensor, seed: int) -> Tensor:
    with torch.no_grad():
        return model.log_prob(x, _no_condition(model), generator=torch.Generator(_device(model)).manual_seed(seed))


def _no_condition(model: Model) -> Tensor | None:
    return None if model.context is None else torch.zeros(len(model.context), dtype=torch.float64, device=_device(model))


def _device(model: Model) -> torch.device:
    return next(iter((*model.parameters(), *model.buffers()))).device


def _rebuilt(header: Header, tensors: dict[str, Tensor], device: str) -> Opened:
    table = Domain.from_json(header.table)
    config = registered(header.family).configure(header.options)
    probe_x, probe = tensors.pop(PROBE_X), tensors.pop(PROBE_LOG_PROB)
    state = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    model = _skeleton(header, table, config, state)
    model.load_tensors(state)
    model = model.to(device).eval()
    if not torch.allclose(
        _probed(model, probe_x.to(device), header.seed).cpu().double(), probe.double(), rtol=1e-5, atol=1e-5, equal_nan=True
    ):
        raise FileError("it opens to another p(x) than the one that was saved")
    origin = Origin(header.family, config, table, Record.from_json(header.record), header.incomplete)
    return Opened(model, origin, header.container, header.seed)


def _skeleton(header: Header, table: Domain, config: Any, state: dict[str, Tensor]) -> Model:  # noqa: ANN401
    """The untrained model; first without storage, so that a hostile size costs nothing."""
    chosen = [table.index(name) for name in header.given]
    others = [d for d in range(len(table)) if d not in chosen]
    domain, context = (table.select(others), table.select(chosen)) if chosen else (table, None)

    def build() -> Model:
        return composed.blank(config, domain, context, header.incomplete)

    with torch.device("meta"):
        _check_sizes(build(), state)
    return build()


def _check_sizes(skeleton: Model, state: dict[str, Tensor]) -> None:
    for name, own in skeleton.state_dict().items():
        if name in state and own.numel() > max(state[name].numel(), 2**20):
            raise FileError(f"tensor {name!r} would need {own.numel()} numbers, the file has {state[name].numel()}")


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise FileError(f"{path} can not be read: {os.strerror(error.errno) if error.errno else error}") from error


def _metadata(path: str | PathLike[str], raw: bytes) -> dict[str, str]:
    """The header's metadata, or why this is no file of ours."""
    size = struct.unpack("<Q", raw[:8])[0] if len(raw) >= 8 else 0
    if not 2 <= size <= min(MAX_HEADER, len(raw) - 8):
        raise FileError(f"{path} is no model file, or it is cut short")
    try:
        metadata = json.loads(raw[8 : 8 + size]).get("__metadata__", {})
    except (ValueError, AttributeError, RecursionError) as error:
        raise FileError(f"{path} is no model file, or its header is damaged") from error
    if not isinstance(metadata, dict) or not isinstance(metadata.get(KEY), str):
        raise FileError(f"{path} is a tensor file, but not one that pofx saved")
    return metadata


def _parsed(path: str | PathLike[str], text: str) -> Header:
    try:
        data = json.loads(text)
        later = isinstance(data, dict) and isinstance(data.get("format"), int) and data["format"] > FORMAT
        if later:
            raise FileError(f"{path} was made by a later pofx ({data.get('pofx')}): update pofx to open it")
        return Header(**data)
    except (ValueError, TypeError, RecursionError) as error:
        if isinstance(error, FileError):
            raise
        raise FileError(f"{path} has a header this version does not know: {_line(error)}") from error


def digest(text: str, tensors: dict[str, Tensor]) -> str:
    """A hash of the header's text and of every tensor's name, type, shape and bytes."""
    hashed = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        t = tensors[name]
        hashed.update(f"\0{name}\0{t.dtype}\0{tuple(t.shape)}\0".encode())
        # A tensor of one number is contiguous whatever its stride is, and a view as bytes asks for 1.
        flat = t.contiguous().as_strided((t.numel(),), (1,))
        hashed.update(flat.view(torch.uint8).numpy().data if t.numel() else b"")
    return hashed.hexdigest()


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
