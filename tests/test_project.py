"""The project keeps its promises: versions, import time, the generated table, what the README says."""

import re
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import checking
import pytest
import torch
from beartype.roar import BeartypeCallHintParamViolation
from jaxtyping import TypeCheckError

import pofx
from pofx.cli.families import proofs, table
from pofx.objectives.elbo import iwae

ROOT = Path(__file__).parents[1]
HEAVY = ("torch", "pandas", "matplotlib", "scipy", "sklearn")


def test_torch_is_the_tested_version():
    assert version("torch").split("+")[0] == "2.13.0"


def test_the_version_is_written_once_more_and_agrees():
    assert tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"] == pofx.__version__


def loaded_by(code: str) -> set[str]:
    script = f"import sys\n{code}\nprint(*sorted(m for m in {HEAVY} if m in sys.modules))"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(run.stdout.split())


def test_importing_pofx_loads_nothing_heavy():
    assert loaded_by("import pofx") == set()


def test_the_command_line_loads_nothing_heavy():
    assert loaded_by("import pofx.cli.main") == set()


def test_the_registry_loads_nothing_heavy():
    assert loaded_by("from pofx.models.registry import families; families()") == set()


def test_no_room_takes_the_name_of_a_verb():
    import pofx.cli.main
    import pofx.comparison
    import pofx.report

    assert all(callable(getattr(pofx, verb)) for verb in ("fit", "open", "search", "compare", "load"))


def test_the_public_names_are_those_that_load():
    assert set(pofx.__all__) == set(pofx._PLACES)


@pytest.mark.parametrize("name", pofx.__all__)
def test_every_public_name_is_there(name):
    assert getattr(pofx, name) is not None


def between(text: str, marker: str) -> str:
    return re.search(rf"<!-- {marker} -->\n(.*?)\n?<!-- /{marker} -->", text, re.DOTALL)[1]


def test_the_readmes_table_is_the_codes():
    assert between((ROOT / "README.md").read_text(), "families") == table(markdown=True)


def test_the_table_of_proofs_is_the_codes():
    """docs/questions.md; `pofx families --proof` writes it."""
    assert between((ROOT / "docs" / "questions.md").read_text(), "proofs").strip() == proofs()


def test_the_readme_has_two_set_up_commands():
    readme = (ROOT / "README.md").read_text()
    for marker in ("main", "tests"):
        block = between(readme, marker).strip().splitlines()
        assert block[0] == "```sh"
        assert block[-1] == "```"
        assert len(block) == 3


def test_a_wrong_shape_is_found():
    with pytest.raises(TypeCheckError, match="log_w"):
        iwae(torch.zeros(3))


def test_types_are_checked_in_the_first_calls_and_now_and_then_after_them():
    @checking.sparing(checking.checked)
    def takes(x: int) -> None: ...

    def is_refused() -> bool:
        try:
            takes("one")
        except BeartypeCallHintParamViolation:
            return True
        return False

    assert [n for n in range(1, 70) if is_refused()] == [*range(1, checking.FIRST + 1), 32, 64]
    checking.calls.clear()  # as before every test
    assert is_refused()
