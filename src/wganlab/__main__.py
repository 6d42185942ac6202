"""``python -m wganlab`` is the ``wganlab`` command."""

from wganlab.cli import main

if __name__ == "__main__":
    main()
