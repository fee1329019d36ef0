"""Sums, products, evidence: probabilistic circuits, whose marginals, conditionals and draws are exact."""
