"""``python -m lightkv_gnn`` is the command line."""

import sys

from lightkv_gnn.cli import main

sys.exit(main())
