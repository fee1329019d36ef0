"""The circuit families: how each finds its structure, and where its parameters begin."""

import abc
from typing import Any, ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from pofx.domain import Domain
from pofx.models.base import GradientConfig, Takes
from pofx.models.circuits.circuit import Circuit
from pofx.models.circuits.em import ExpectationMaximisation
from pofx.models.circuits.graph import Node
from pofx.models.circuits.structure import dependence, quad_tree, random_trees, spanning_tree, tree


class CircuitConfig(GradientConfig, abc.ABC):
    """Options that all circuits share."""

    takes: ClassVar[Takes] = Takes.SCALED
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"units": (8, 16, 32, 64)}

    units: int = Field(32, ge=1, le=4096, description="units K of each node")
    learning: Literal["adam", "em"] | None = Field(None, description="None: both, and held-out rows decide which is kept")
    learning_rate: float = Field(0.1, gt=0, description="of Adam; the step size of EM, the share of a batch's counts, is 4 times that")
    final_rate: float = Field(0.05, gt=0, le=1, description="the last learning rate over the first; it falls geometrically over the run")
    batch_size: int = Field(256, ge=1, description="where not given, a 32nd of the rows, from 16 to 256")
    max_epochs: int = Field(60, ge=1)
    clip_norm: float | None = Field(None, gt=0)
    ema: float | None = Field(0.99, gt=0, lt=1, description="decay of the weights' moving average; None: no average")

    def for_rows(self, n: int) -> GradientConfig:
        """The batch size, where it was not given."""
        if "batch_size" in self.model_fields_set:
            return self
        return self.model_copy(update={"batch_size": min(max(n // 32, 16), 256)})

    def rivals(self) -> "tuple[GradientConfig, ...]":
        """Adam, and EM, which is done in a quarter of the epochs, where the user does not say which."""
        if self.learning is not None:
            return (self,)
        em = {"learning": "em", "max_epochs": max(3, self.max_epochs // 4)}
        return (self.model_copy(update={"learning": "adam"}), self.model_copy(update=em))

    def optimiser(self, player: nn.Module, parameters: list[nn.Parameter], rows: int) -> torch.optim.Optimizer:
        """Adam, or EM on the circuit."""
        if self.learning != "em":
            return super().optimiser(player, parameters, rows)
        circuit = next(m for m in player.modules() if isinstance(m, Circuit))
        return ExpectationMaximisation(circuit, rows, self.learning_rate)

    @abc.abstractmethod
    def nodes(self, domain: Domain, x: Tensor) -> list[Node]:
        """The structure for rows x (N, D)."""

    def _build(self, domain: Domain, context: Domain | None) -> Circuit:
        return Circuit(domain, self.units, self.nodes)


class HiddenChowLiuConfig(CircuitConfig):
    """Options of `hclt`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{liu2021tractable, title={Tractable regularization of probabilistic circuits}, "
        "author={Liu, Anji and Van den Broeck, Guy}, booktitle={Advances in Neural Information Processing Systems}, year={2021}}",
    )

    def nodes(self, domain: Domain, x: Tensor) -> list[Node]:
        """A node with an input for each variable, along the spanning tree of greatest mutual information."""
        return tree(spanning_tree(dependence(x)))


class RandomTreesConfig(CircuitConfig):
    """Options of `rat`."""

    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{peharz2019random, "
        "title={Random sum-product networks: a simple and effective approach to probabilistic deep learning}, "
        "author={Peharz, Robert and Vergari, Antonio and Stelzner, Karl and Molina, Alejandro and Shao, Xiaoting and Trapp, Martin "
        "and Kersting, Kristian and Ghahramani, Zoubin}, booktitle={Uncertainty in Artificial Intelligence}, year={2019}}",
    )
    space: ClassVar[dict[str, tuple[Any, ...]]] = {"units": (8, 16, 32, 64), "replicas": (1, 4, 8, 16)}

    replicas: int = Field(8, ge=1, le=1024, description="trees that are mixed")
    depth: int = Field(4, ge=0, le=32, description="how often the variables are halved")

    def nodes(self, domain: Domain, x: Tensor) -> list[Node]:
        """Random halvings."""
        return random_trees(len(domain), self.replicas, self.depth)


class QuadTreeConfig(CircuitConfig):
    """Options of `quad_tree`."""

    images: ClassVar[bool] = True
    cites: ClassVar[tuple[str, ...]] = (
        "@inproceedings{mari2023unifying, "
        "title={Unifying and understanding overparameterized circuit representations via low-rank tensor decompositions}, "
        "author={Mari, Antonio and Vessio, Gennaro and Vergari, Antonio}, "
        "booktitle={6th Workshop on Tractable Probabilistic Modeling at UAI}, year={2023}}",
    )

    def nodes(self, domain: Domain, x: Tensor) -> list[Node]:
        """Regions of the image, each the product of its quarters."""
        return quad_tree(domain.shape)
