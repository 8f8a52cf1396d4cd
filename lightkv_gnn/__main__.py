"""``python -m lightkv_gnn`` is the command line."""

import sys

from lightkv_gnn.commands.cli import main

sys.exit(main())
