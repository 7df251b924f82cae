"""`python -m embedstore`: the same as the embedstore command."""

from embedstore.cli import main

if __name__ == "__main__":
    main()
