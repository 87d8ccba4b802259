"""`python -m kdscale`: the program, where its script is not on the path."""

from kdscale.cli import main

if __name__ == "__main__":
    main()
