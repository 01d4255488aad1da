"""``python -m enclavia``, and the script ``enclavia-client``.

Decides nothing. Calls: _cli. Locks: none.
"""

from __future__ import annotations

import sys

from ._cli.main import main

if __name__ == "__main__":
    sys.exit(main())
