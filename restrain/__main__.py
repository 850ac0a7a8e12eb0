"""``python -m restrain`` is ``restrain``."""

from restrain.cli.main import main

if __name__ == "__main__":
    main()
