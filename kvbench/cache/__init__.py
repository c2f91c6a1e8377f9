"""KV caches: ragged (memory really saved) and masked (the simulation and oracle)."""
