"""The command line from a checkout: `python tools/swap_norms.py swap MODEL --to weight …`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kerasnorm.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
