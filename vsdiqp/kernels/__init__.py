"""GPU kernels: planes.cu (CUDA C, the pixel side of a group) and Triton kernels (the blocks of the network)."""
