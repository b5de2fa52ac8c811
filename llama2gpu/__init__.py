"""Llama-family models on kernels that a person can read, check and measure."""
