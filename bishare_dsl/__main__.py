"""``python -m bishare_dsl``: the command ``bishare``, where it is not on the PATH."""

import sys

from bishare_dsl.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
