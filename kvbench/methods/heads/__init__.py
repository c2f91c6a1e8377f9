"""Head budgets: how the tokens of a layer are split over its KV heads."""
