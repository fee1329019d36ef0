"""How good: nats, bits per dimension, two-sample distances, each with its error."""
