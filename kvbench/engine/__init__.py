"""The engine: one prefill, many variants, one batch that decodes."""
