"""`python -m llama2gpu` is the command `llama2gpu`."""

from llama2gpu.cli.main import main

main()
