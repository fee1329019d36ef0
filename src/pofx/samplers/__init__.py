"""Ways to draw from a density and to find its top, as functions of callables: log-densities of rows in nats, and draws.

Many chains are one tensor, (chains, D). Every draw comes from the generator given, and numbers have the type and
device of the tensors given. `densities` says how a log-density is asked, `denoising` how a denoiser is.
"""

from pofx.samplers.ascent import Ascent, ascend
from pofx.samplers.denoising import (
    DDIM,
    DPM2M,
    SOLVERS,
    Adaptive,
    Ancestral,
    Denoise,
    EulerMaruyama,
    Heun,
    PredictorCorrector,
    Solver,
    TurnedAdams,
    TurnedRungeKutta,
    last,
    probability_flow,
    turning,
)
from pofx.samplers.diagnostics import bulk_ess, mean_error, mean_ess, pareto_k, rhat, tail_ess, weight_ess
from pofx.samplers.flow_ode import FlowLogProb, decode, encode, ode_log_prob
from pofx.samplers.gibbs import GibbsChains, Sweep, gibbs
from pofx.samplers.hmc import HMCChains, hmc
from pofx.samplers.importance import Weighted, importance, log_mean, smoothed, systematic
from pofx.samplers.kernels import Hamiltonian, Independence, Kernel, Moved, RandomWalk
from pofx.samplers.levels import along_path, check_levels, karras, log_uniform, turned
from pofx.samplers.smc import SMC, smc

__all__ = [
    "DDIM",
    "DPM2M",
    "SMC",
    "SOLVERS",
    "Adaptive",
    "Ancestral",
    "Ascent",
    "Denoise",
    "EulerMaruyama",
    "FlowLogProb",
    "GibbsChains",
    "HMCChains",
    "Hamiltonian",
    "Heun",
    "Independence",
    "Kernel",
    "Moved",
    "PredictorCorrector",
    "RandomWalk",
    "Solver",
    "Sweep",
    "TurnedAdams",
    "TurnedRungeKutta",
    "Weighted",
    "along_path",
    "ascend",
    "bulk_ess",
    "check_levels",
    "decode",
    "encode",
    "gibbs",
    "hmc",
    "importance",
    "karras",
    "last",
    "log_mean",
    "log_uniform",
    "mean_error",
    "mean_ess",
    "ode_log_prob",
    "pareto_k",
    "probability_flow",
    "rhat",
    "smc",
    "smoothed",
    "systematic",
    "tail_ess",
    "turned",
    "turning",
    "weight_ess",
]
