"""GPU kernels: planes.cu and alignment.cu (CUDA C, the pixel side of a group), and Triton's (blocks of the network)."""
