"""The free functions h of every family: networks with given parameters, blind to what they serve."""
