"""The kit that holds a backend to its claims; `lsm.testing` is its public face."""
