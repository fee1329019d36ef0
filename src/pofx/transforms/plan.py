"""Which maps lead from a domain to what a family takes: first a lift, then an elementwise bijection.

    everything  no map: the family models the domain as it is.
    scaled      no lift: real variables standardised, positive ones over their scale, with their grid and atom carried along.
    discrete    counts and levels as they are; real variables standardised, with their resolution and atom carried along;
                positive ones by their log, intervals by their logit, after a lift where they are rounded or have an atom.
    finite      variables of at most 256 values as they are; every other one as under reals.
    reals       every variable becomes a standardised real: codes as normal scores, rounded values and atoms as cells.

For a family that takes reals, codes may be cells of width 1 instead of scores: on a logit scale where they are finitely many, since
the first and the last value are often frequent, and what a standardised y would have to learn there is a wall. (Digits' pixels, neural
spline flow: 93.4 nats a row, standardised 117.1, by scores 90.5.)

`plan` reads the domain alone, so a file rebuilds the same maps; their numbers come from data or from the file.
"""

from collections.abc import Sequence
from dataclasses import replace

from pofx.domain import CONTINUOUS, Domain, Variable, VariableKind
from pofx.errors import OptionError
from pofx.transforms.dequantise import Cells, Lift, NormalScores
from pofx.transforms.elementwise import Elementwise, Scale

SCALED = frozenset({VariableKind.REAL, VariableKind.POSITIVE})  # the kinds that have a unit
MAX_SCORED = 1024  # codes with more values than this are cells of width 1: a table of their frequencies would be mostly empty
MOST_VALUES = 256  # of a variable that a family of finite ones takes as it is
TAKES = ("everything", "scaled", "discrete", "finite", "reals")
CODES = ("scores", "uniform")


def plan(domain: Domain, takes: str, codes: str = CODES[0]) -> tuple[Lift | None, Elementwise | None]:
    """The maps, not yet fitted; None where nothing is to do.

    Args:
        domain: what x is.
        takes: everything, scaled, discrete, finite or reals.
        codes: "scores", cells of equal mass under a normal, or "uniform", cells of width 1; for a family that takes reals.

    Raises:
        OptionError: `takes` or `codes` is none of these.
    """
    if takes not in TAKES:
        raise OptionError(f"a family takes one of {', '.join(TAKES)}, got {takes!r}")
    if codes not in CODES:
        raise OptionError(f"codes become reals by {' or '.join(CODES)}, got {codes!r}")
    if takes == "everything":
        return None, None
    if takes == "scaled":
        moved = any(v.kind in SCALED for v in domain.variables)
        return None, Elementwise([Scale.IDENTITY] * len(domain), [v.spike for v in domain.variables]) if moved else None
    real = [takes == "reals" or (takes == "finite" and (v.cardinality or MOST_VALUES + 1) > MOST_VALUES) for v in domain.variables]
    scored = [d for d, is_real in enumerate(real) if is_real and codes == CODES[0]]
    coded = [d for d in scored if (domain.variables[d].cardinality or MAX_SCORED + 1) <= MAX_SCORED]
    celled = [d for d, v in enumerate(domain.variables) if d not in coded and _needs_cells(v, real[d])]
    scores, cells = NormalScores([domain.variables[d] for d in coded]), Cells([domain.variables[d] for d in celled])
    lift = Lift(len(domain), scores, coded, cells, celled)
    scales = [Scale.IDENTITY if d in coded else _scale(v, real[d]) for d, v in enumerate(domain.variables)]
    # A real variable's atom that is not lifted stays an atom, and is what it is standardised about: it becomes 0 exactly.
    atoms = [None if d in celled else v.spike for d, v in enumerate(domain.variables)]
    moved = any(d not in coded and (real[d] or v.continuous) for d, v in enumerate(domain.variables))
    return (lift if coded or celled else None), (Elementwise(scales, atoms) if moved else None)


def image(domain: Domain, lift: Lift | None, transform: Elementwise | None, scale: Sequence[float] | None = None) -> Domain:
    """The domain behind the maps: what the family is built on.

    Args:
        domain: the user's.
        lift: what `plan` gave.
        transform: what `plan` gave.
        scale: of each variable; the transform's own when not given (a map without numbers yet has none).
    """
    if lift is None and transform is None:
        return domain
    if scale is None:
        scale = [1.0] * len(domain) if transform is None else transform.scale.tolist()
    lifted = set() if lift is None else set(lift.lifted)
    straight = [transform is None or s is Scale.IDENTITY for s in (transform.scales if transform else [None] * len(domain))]
    seen = (
        _scaled(v, s) if plain and d not in lifted and v.kind is not VariableKind.REAL else _image(v, d in lifted, s)
        for d, (v, s, plain) in enumerate(zip(domain.variables, scale, straight, strict=True))
    )
    return Domain(tuple(seen), domain.shape)


def _scaled(v: Variable, scale: float) -> Variable:
    """A variable that keeps its kind, in another unit where it has one."""
    if v.kind not in SCALED:
        return v
    step = None if v.resolution is None else v.resolution / scale
    return replace(v, resolution=step, spike=None if v.spike is None else v.spike / scale)


def _image(v: Variable, lifted: bool, scale: float) -> Variable:
    if not lifted and v.kind not in CONTINUOUS:
        return v
    carried = v.kind is VariableKind.REAL and not lifted
    step = v.resolution / scale if carried and v.resolution is not None else None
    spike = 0.0 if carried and v.spike is not None else None
    return Variable(v.name, VariableKind.REAL, resolution=step, spike=spike)


def _needs_cells(v: Variable, real: bool) -> bool:
    rough = v.resolution is not None or v.spike is not None
    if real:
        return rough or not v.continuous
    return rough and v.kind in {VariableKind.POSITIVE, VariableKind.INTERVAL}


def _scale(v: Variable, real: bool) -> Scale:
    if v.kind is VariableKind.POSITIVE:
        return Scale.LOG
    if v.kind is VariableKind.INTERVAL:
        return Scale.LOGIT
    if not real or v.continuous:
        return Scale.IDENTITY
    return Scale.LOG if v.cardinality is None else Scale.LOGIT
