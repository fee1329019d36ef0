"""The map of generative models, one room per chapter."""
