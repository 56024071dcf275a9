"""``python -m idgen`` is the command ``idgen``."""

from idgen.cli import main

if __name__ == "__main__":
    raise SystemExit(main())
