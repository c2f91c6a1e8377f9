"""KV caches: ragged (saves memory), masked (the simulation and oracle), and the recent tokens of local layers."""
