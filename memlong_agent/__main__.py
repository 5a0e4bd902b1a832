"""`python -m memlong_agent` is the command `memlong`."""

from memlong_agent.cli import main

main()
