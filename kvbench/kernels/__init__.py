"""`python -m kvbench.kernels`: build the CUDA kernels, say which can run here, check them."""
