"""The engine: one prefill, many variants, one batched decode."""
