"""The command line as a module, for launchers: `accelerate launch -m zoomzero train ...`."""

import sys

from zoomzero.cli import main

sys.exit(main())
