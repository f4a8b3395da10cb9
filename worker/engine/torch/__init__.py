"""The model on torch, for every device, and CUDA graphs of its decoding steps."""
