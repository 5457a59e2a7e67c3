"""`python -m surgery`: the command, for environments whose scripts aren't on the path and for launchers such as torchrun."""

from cli.main import main

if __name__ == "__main__":
    main()
