"""The model for CPUs on compiled C kernels: the sources, their build, and the thread tuner."""
