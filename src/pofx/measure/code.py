"""How well the code of a representation keeps what the labels say."""

import math

import numpy as np
import torch
from torch import Tensor

from pofx.errors import DataError
from pofx.types import Answer, Kind


def knn_accuracy(code: Tensor, labels: Tensor, test_code: Tensor, test_labels: Tensor, *, neighbours: int = 5) -> Answer:
    """The share of test rows whose label is the commonest among the k nearest training codes.

    Distances are Euclidean in the code as it is; of labels that tie, that of the nearer neighbours wins.
    The error is the binomial one.

    Args:
        code: z (N, L) of the training rows.
        labels: integers (N,).
        test_code: z (M, L) of the test rows.
        test_labels: integers (M,).
        neighbours: k.
    """
    if not 1 <= neighbours <= len(code):
        raise DataError(f"{neighbours} neighbours are asked for among {len(code)} training rows")
    near = torch.cdist(test_code, code).topk(neighbours, largest=False).indices
    votes = torch.zeros(len(test_code), int(labels.max()) + 1, dtype=torch.float64)
    weight = 1 - 1e-3 * torch.arange(neighbours, dtype=torch.float64) / neighbours  # below one vote in sum: only ties feel it
    votes.scatter_add_(1, labels[near], weight.expand(len(test_code), -1).contiguous())
    accuracy = float((votes.argmax(1) == test_labels).double().mean())
    error = math.sqrt(accuracy * (1 - accuracy) / len(test_code))
    return Answer(np.asarray(accuracy), Kind.ESTIMATE, np.asarray(error), f"{neighbours} nearest neighbours in the code")
