"""What we observe: readers, the domain inferred from a table, built-in sets, preparation. Blind to models."""
