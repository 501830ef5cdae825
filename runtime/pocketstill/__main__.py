"""`python -m pocketstill` is the command `pocketstill`."""

from pocketstill.cli import main

if __name__ == "__main__":
    main()
