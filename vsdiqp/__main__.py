"""``python -m vsdiqp`` is the command ``vsdiqp``."""

import sys

from vsdiqp.cli import main

sys.exit(main())
