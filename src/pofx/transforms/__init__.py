"""x = T(u) with log|det J_T|: bijections and surjections, forward = base to data."""
