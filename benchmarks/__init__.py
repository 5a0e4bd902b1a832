"""What memlong-agent costs, measured beside what it replaces. Run `python -m benchmarks --help`."""
