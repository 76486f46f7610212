"""`python -m kerasnorm`."""

import sys

from kerasnorm.cli.main import main

sys.exit(main())
