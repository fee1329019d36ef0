"""Questions to a learned p(x), in the user's columns and units."""
