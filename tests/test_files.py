"""A saved p(x) opens to the same bits; a damaged, foreign or hostile file gives one FileError, whatever it holds."""

import contextlib
import json
import random
import struct
import subprocess
import sys

import numpy as np
import pytest
import torch

import pofx
from pofx.ask.files import KEY, digest, read_file
from pofx.errors import FileError, OptionError
from pofx.models.registry import families
from pofx.models.registry import family as registered

QUICK = {
    "gmm": {"components": 2},
    "vae": {"max_epochs": 2},
    "latent_class": {"components": 2},
    "chow_liu": {"bins": 8},
    "hclt": {"max_epochs": 2, "units": 4},
}
FAMILIES = tuple(QUICK)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Family -> (p, file)."""
    folder = tmp_path_factory.mktemp("models")
    made = {}
    for name in FAMILIES:
        p = pofx.fit("penguins", name, **QUICK[name])
        p.save(folder / f"{name}.safetensors")
        made[name] = (p, folder / f"{name}.safetensors")
    return made


ELSEWHERE = """
import sys, numpy as np, pofx
rows = pofx.load("penguins").test
np.savez(sys.argv[1], *(np.asarray(pofx.open(file).log_prob(rows)) for file in sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def elsewhere(learned, tmp_path_factory):
    """Family -> log_prob of the test rows by its file alone, in a process of its own."""
    out = tmp_path_factory.mktemp("elsewhere") / "log_p.npz"
    subprocess.run([sys.executable, "-c", ELSEWHERE, out, *(file for _, file in learned.values())], check=True)
    with np.load(out) as found:
        return dict(zip(learned, found.values(), strict=True))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_new_process_gives_the_same_bits(learned, elsewhere, family):
    p, _ = learned[family]
    here = np.asarray(p.log_prob(pofx.load("penguins").test))
    assert elsewhere[family].tobytes() == here.tobytes()


SMALL = {"max_epochs": 1, "units": 4, "components": 2, "width": 8, "widths": (8,), "draws": 4}


@pytest.mark.parametrize("family", families())
def test_every_family_opens_to_the_same_p(family, tmp_path):
    config = registered(family).config
    rows = pofx.load("digits" if config.images else "penguins")
    options = {name: value for name, value in SMALL.items() if name in config.model_fields}
    for given in (None, ["species"]) if config.conditional and not config.images else (None,):
        p = pofx.fit(rows.train[:120], family, given=given, schema=rows.domain, **options)
        p.save(tmp_path / "p.safetensors")
        q = pofx.open(tmp_path / "p.safetensors")
        test = rows.test[:30]
        assert np.array_equal(np.asarray(q.log_prob(test)), np.asarray(p.log_prob(test)), equal_nan=True)


def test_saving_again_replaces_the_file_whole(learned, tmp_path):
    p, _ = learned["gmm"]
    target = tmp_path / "p.safetensors"
    target.write_bytes(b"old")
    p.save(target)
    assert pofx.open(target).origin.family == "gmm"
    assert [f.name for f in tmp_path.iterdir()] == ["p.safetensors"]


def test_an_answer_can_not_be_saved(learned, tmp_path):
    p, _ = learned["gmm"]
    with pytest.raises(OptionError, match="came from a question"):
        p.marginal("body_mass_g").save(tmp_path / "p.safetensors")


def outcome(path):
    """The p(x) of a file, or the FileError: nothing else may come out."""
    with contextlib.suppress(FileError):
        return pofx.open(path)
    return None


def truncated(raw, rng):
    return raw[: rng.randrange(len(raw))]


def flipped(raw, rng):
    out = bytearray(raw)
    for _ in range(rng.choice((1, 1, 1, 5, 50))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def flipped_header(raw, rng):
    size = struct.unpack("<Q", raw[:8])[0]
    out = bytearray(raw)
    out[rng.randrange(8 + size)] = rng.randrange(256)
    return bytes(out)


def spliced(raw, rng):
    a, b = sorted(rng.randrange(len(raw)) for _ in range(2))
    return raw[:a] + raw[b:] + bytes(rng.randrange(256) for _ in range(rng.randrange(20)))


def hostile_size(raw, rng):
    return struct.pack("<Q", rng.choice((0, 1, 2**63, 2**64 - 1, 2**40, len(raw), len(raw) - 8, rng.randrange(2**20)))) + raw[8:]


DAMAGE = (truncated, flipped, flipped_header, spliced, hostile_size)


def damage_all(learned, tmp_path, each):
    """Every damaged file is refused, or (where a flip changed nothing that counts) opens to the very same bits."""
    rng = random.Random(0)
    rows = pofx.load("penguins").test[:5]
    target = tmp_path / "damaged.safetensors"
    for p, file in learned.values():
        raw = file.read_bytes()
        for damage in DAMAGE:
            for _ in range(each):
                target.write_bytes(damage(raw, rng))
                opened = outcome(target)
                if opened is not None:
                    assert np.asarray(opened.log_prob(rows)).tobytes() == np.asarray(p.log_prob(rows)).tobytes()


def test_damage_is_told(learned, tmp_path):
    damage_all(learned, tmp_path, each=4)


@pytest.mark.slow
def test_a_thousand_damages_are_told(learned, tmp_path):
    damage_all(learned, tmp_path, each=70)


def rewritten(file, target, change):
    """A file whose header was edited by somebody who knows the format, digest and all."""
    from safetensors.torch import save

    header, tensors = read_file(file)
    data = json.loads(header.model_dump_json())
    change(data, tensors)
    text = json.dumps(data)
    target.write_bytes(save(tensors, {KEY: text, "digest": digest(text, tensors)}))
    return target


HOSTILE = {
    "a later format": lambda d, t: d.update(format=99),
    "an unknown family": lambda d, t: d.update(family="os.system"),
    "a family that does not fit": lambda d, t: d.update(family="kde", options={}),
    "an unknown option": lambda d, t: d["options"].update(evil=1),
    "a wrong type": lambda d, t: d["options"].update(components="__import__('os')"),
    "no columns": lambda d, t: d["table"].update(variables=[]),
    "a million columns": lambda d, t: d.update(table={"array": {"name": "x", "kind": "real"}, "shape": [2**40]}),
    "a column too many": lambda d, t: d["table"]["variables"].append({"name": "zz", "kind": "real"}),
    "an odd kind": lambda d, t: d["table"]["variables"][0].update(kind="pickle"),
    "a given column that is not there": lambda d, t: d.update(given=["nobody"]),
    "everything given": lambda d, t: d.update(given=[v["name"] for v in d["table"]["variables"]]),
    "an odd container": lambda d, t: d.update(container="eval"),
    "no record": lambda d, t: d.update(record={}),
    "a lacking tensor": lambda d, t: t.pop(sorted(t)[0]),
    "a tensor too many": lambda d, t: t.update({"model.extra": t[sorted(t)[0]].clone()}),
    "a tensor of another shape": lambda d, t: t.update({sorted(t)[0]: t[sorted(t)[0]].repeat(2)}),
    "no probe": lambda d, t: t.pop("probe.x"),
    "another probe": lambda d, t: t["probe.log_prob"].add_(1.0),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_an_edited_header_is_refused(learned, tmp_path, change):
    with pytest.raises(FileError):
        pofx.open(rewritten(learned["gmm"][1], tmp_path / "edited.safetensors", change))


@pytest.mark.parametrize("options", [{"widths": [10**9]}, {"latents": 10**12}, {"widths": [64] * 10**5}])
def test_a_hostile_size_is_refused_before_anything_is_built(learned, tmp_path, options):
    with pytest.raises(FileError):
        pofx.open(rewritten(learned["vae"][1], tmp_path / "edited.safetensors", lambda d, t: d["options"].update(options)))


def test_an_unedited_header_is_not(learned, tmp_path):
    assert outcome(rewritten(learned["gmm"][1], tmp_path / "same.safetensors", lambda d, t: None)) is not None


@pytest.mark.parametrize(
    ("content", "sentence"),
    [(b"", "no model file"), (b"PK\x03\x04" + b"\0" * 100, "no model file"), (b"{}" * 50, "no model file"), (None, "can not be read")],
)
def test_a_foreign_file_is_told(tmp_path, content, sentence):
    path = tmp_path / "foreign"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(FileError, match=sentence):
        pofx.open(path)


def test_another_tensor_file_is_told(tmp_path):
    import torch
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(3)}, tmp_path / "w.safetensors")
    with pytest.raises(FileError, match="not one that pofx saved"):
        pofx.open(tmp_path / "w.safetensors")


def test_a_tensor_of_one_number_may_have_any_stride(tmp_path):
    """A Chow-Liu tree of two variables has one edge, a row of a larger tensor: contiguous, with a stride of 2."""
    odd = torch.arange(4).view(2, 2)[:, :1][:1, 0]
    assert odd.stride() == (2,)
    assert digest("", {"edge": odd}) == digest("", {"edge": torch.tensor([0])})
    p = pofx.fit("moons", "chow_liu")
    p.save(tmp_path / "p.safetensors")
    rows = pofx.load("moons").test[:20]
    assert np.array_equal(np.asarray(pofx.open(tmp_path / "p.safetensors").log_prob(rows)), np.asarray(p.log_prob(rows)))
