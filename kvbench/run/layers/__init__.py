"""`kvbench layers`: drop ratios of a model's layers by the offline calibration of PrefixKV (arXiv 2412.03409)."""
