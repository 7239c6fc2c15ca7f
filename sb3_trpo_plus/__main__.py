"""``python -m sb3_trpo_plus``: the command line."""

from sb3_trpo_plus.command_line.main import main

main()
