"""The compiled kernels: one module per instruction level, and `cpu`, which says what this processor has."""
