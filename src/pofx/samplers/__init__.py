"""Ways to draw from a density and to find its top, as functions of callables: log-densities of rows in nats, and draws.

Many chains are one tensor, (chains, D). Every draw comes from the generator given, and numbers have the type and
device of the tensors given. `densities` says how a log-density is asked.
"""

from pofx.samplers.ascent import Ascent, ascend
from pofx.samplers.diagnostics import bulk_ess, mean_error, mean_ess, pareto_k, rhat, tail_ess, weight_ess
from pofx.samplers.gibbs import GibbsChains, Sweep, gibbs
from pofx.samplers.hmc import HMCChains, hmc
from pofx.samplers.importance import Weighted, importance, log_mean, smoothed, systematic
from pofx.samplers.kernels import Hamiltonian, Independence, Kernel, Moved, RandomWalk
from pofx.samplers.smc import SMC, smc

__all__ = [
    "SMC",
    "Ascent",
    "GibbsChains",
    "HMCChains",
    "Hamiltonian",
    "Independence",
    "Kernel",
    "Moved",
    "RandomWalk",
    "Sweep",
    "Weighted",
    "ascend",
    "bulk_ess",
    "gibbs",
    "hmc",
    "importance",
    "log_mean",
    "mean_error",
    "mean_ess",
    "pareto_k",
    "rhat",
    "smc",
    "smoothed",
    "systematic",
    "tail_ess",
    "weight_ess",
]
