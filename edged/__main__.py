"""`python -m edged` is the command `edged`."""

from __future__ import annotations

from edged.cli.main import main

if __name__ == "__main__":
    main()
