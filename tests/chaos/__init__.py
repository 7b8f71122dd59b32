"""Chaos: runs with random faults, restarted by the same command until they finish (`python -m tests.chaos --help`)."""
