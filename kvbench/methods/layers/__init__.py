"""Layer budgets: how many tokens each layer may keep, summed over its KV heads."""
