"""`kvbench heads`: scores of a model's attention heads by the probes of HeadKV (arXiv 2410.19258)."""
