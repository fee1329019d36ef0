"""The compiled kernels: built with the user's compiler when first needed, and kept in the user's cache.

A file's name is the hash of all that decides what is in it: the source, the compiler, its flags, and the processor, since a home folder may
serve several machines. It is written aside and renamed, and ends with its own hash: a damaged one is built again. Where there is no
compiler, or nowhere to keep the file, there is no library, and that is no error. POFX_NATIVE=0 switches it off.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

VARIABLE = "POFX_NATIVE"
SOURCE = Path(__file__).with_name("kernels.c")
FLAGS = ("-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-shared", "-fPIC")
_PATIENCE = 120.0  # seconds for the compiler
_DIGEST = hashlib.sha256().digest_size


@cache
def library() -> ctypes.CDLL | None:
    """The kernels; None where there are none. Asked once a process: the first time on a machine takes seconds."""
    if os.environ.get(VARIABLE) == "0":
        return None
    try:
        return _opened()
    except (OSError, subprocess.SubprocessError):
        return None


def _opened() -> ctypes.CDLL:
    compiler = _compiler()
    path = folder() / f"{_name(compiler)}.so"
    if not _whole(path):
        _build(compiler, path)
    return ctypes.CDLL(str(path))


def folder() -> Path:
    """Where built kernels are kept."""
    kept = os.environ.get("XDG_CACHE_HOME")
    return (Path(kept) if kept else Path("~/.cache").expanduser()) / "pofx" / "native"


def _compiler() -> list[str]:
    """CC, else cc, gcc or clang."""
    wanted = [shlex.split(os.environ.get("CC", "")), ["cc"], ["gcc"], ["clang"]]
    for name, *options in filter(None, wanted):
        if found := shutil.which(name):
            return [found, *options]
    raise FileNotFoundError("no C compiler")


def _name(compiler: list[str]) -> str:
    program = Path(compiler[0]).resolve().stat()
    parts = [*compiler, str(program.st_size), str(program.st_mtime_ns), *FLAGS, _processor()]
    return hashlib.sha256(SOURCE.read_bytes() + "\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    """What it is called and what it can do."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    told = {line for line in lines if line.split("\t")[0].strip() in {"model name", "flags", "Features", "CPU part"}}
    return "\n".join([platform.system(), platform.machine(), platform.processor(), *sorted(told)])


def _whole(path: Path) -> bool:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(content[:-_DIGEST]).digest() == content[-_DIGEST:]


def _build(compiler: list[str], path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as aside:
        built = Path(aside) / "built"
        command = [*compiler, *FLAGS, "-o", str(built), str(SOURCE), "-lm"]
        subprocess.run(command, check=True, capture_output=True, stdin=subprocess.DEVNULL, timeout=_PATIENCE)
        with built.open("rb+") as file:
            digest = hashlib.sha256(file.read()).digest()
            file.write(digest)
            file.flush()
            os.fsync(file.fileno())
        built.replace(path)
