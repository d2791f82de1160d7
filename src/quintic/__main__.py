"""`python -m quintic` is the `quintic` command."""

from quintic.cli.main import main

if __name__ == "__main__":
    main()
