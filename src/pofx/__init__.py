"""pofx: learn p(x), ask it anything."""
